# PostgreSQL by RDS, without TimescaleDB, which RDS does not have: bars are then neither compressed nor partitioned, and
# all else is the same. Where that is too dear, `managed_postgres = false` and deploy/k8s/components/postgres.

resource "aws_db_subnet_group" "this" {
  count = var.managed_postgres ? 1 : 0

  name       = var.name
  subnet_ids = [for subnet in aws_subnet.servers : subnet.id]
}

resource "aws_db_parameter_group" "this" {
  count = var.managed_postgres ? 1 : 0

  name_prefix = "${var.name}-"
  family      = "postgres${split(".", var.postgres_version)[0]}"

  parameter {
    name  = "rds.force_ssl"
    value = "1"
  }

  parameter {
    name  = "log_connections"
    value = "1"
  }

  parameter {
    name  = "log_disconnections"
    value = "1"
  }

  lifecycle {
    create_before_destroy = true
  }
}

resource "aws_db_instance" "this" {
  count = var.managed_postgres ? 1 : 0

  identifier     = var.name
  engine         = "postgres"
  engine_version = var.postgres_version
  instance_class = var.postgres_class

  storage_type          = "gp3"
  allocated_storage     = var.postgres_storage_gb.now
  max_allocated_storage = var.postgres_storage_gb.max
  storage_encrypted     = true
  kms_key_id            = aws_kms_key.this["data"].arn

  db_name             = "bars"
  username            = "tradeloop" # makes the roles and the other databases: `tradeloop db roles`
  password_wo         = local.passwords["POSTGRES_PASSWORD"]
  password_wo_version = var.passwords_version

  multi_az               = true # a commit is in two zones before it is one: the ledger is the truth about money
  db_subnet_group_name   = aws_db_subnet_group.this[0].name
  vpc_security_group_ids = [aws_security_group.servers["postgres"].id]
  publicly_accessible    = false
  parameter_group_name   = aws_db_parameter_group.this[0].name
  ca_cert_identifier     = "rds-ca-rsa2048-g1"

  backup_retention_period   = var.backup_days
  backup_window             = "01:00-02:00"
  maintenance_window        = "Sun:03:00-Sun:04:00"
  copy_tags_to_snapshot     = true
  delete_automated_backups  = false
  deletion_protection       = var.deletion_protection
  skip_final_snapshot       = false
  final_snapshot_identifier = "${var.name}-final"

  auto_minor_version_upgrade      = true
  enabled_cloudwatch_logs_exports = ["postgresql"]
  performance_insights_enabled    = true
  performance_insights_kms_key_id = aws_kms_key.this["data"].arn

  depends_on = [aws_cloudwatch_log_group.this]
}
