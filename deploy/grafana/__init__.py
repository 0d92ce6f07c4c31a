"""Dashboards as code: `panels` says what is shown, `python -m deploy.grafana` writes it as Grafana reads it."""
