"""Infrastructure on AWS as code, and the overlay that its outputs make: docs/terraform.md."""
