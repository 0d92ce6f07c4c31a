# Tradeloop on AWS, for OpenTofu and Terraform alike. It has never been applied: docs/terraform.md says how it was
# checked, and what is to be done before, between and after.
terraform {
  # Passwords are written without passing through the state: write-only arguments came with 1.11, in both.
  required_version = ">= 1.11.0, < 2.0.0"

  required_providers {
    aws = {
      source  = "hashicorp/aws"
      version = "6.25.0" # the one whose arguments tests/terraform_schema.json knows
    }
    random = {
      source  = "hashicorp/random"
      version = "3.7.2"
    }
  }

  # The bucket is made by the folder `state`; its name comes with `init -backend-config=backend.hcl`.
  backend "s3" {
    key          = "tradeloop/terraform.tfstate"
    encrypt      = true
    use_lockfile = true # two at once do not write: the second is told who holds the lock
  }
}

provider "aws" {
  region              = var.region
  allowed_account_ids = [var.account_id]

  default_tags {
    tags = merge(var.tags, {
      Project     = "tradeloop"
      Environment = var.environment
      ManagedBy   = "deploy/terraform"
    })
  }
}
