# Valkey by ElastiCache, for the features that inference reads online: a cache that the stream fills again.

resource "aws_elasticache_subnet_group" "this" {
  name       = var.name
  subnet_ids = [for subnet in aws_subnet.servers : subnet.id]
}

resource "aws_elasticache_parameter_group" "this" {
  name   = var.name
  family = "valkey8"

  parameter {
    name  = "maxmemory-policy"
    value = "allkeys-lru"
  }
}

# The one password that is in the state: ElastiCache has no argument that is written without being kept.
resource "random_password" "cache" {
  length  = 48
  special = false
}

resource "aws_elasticache_replication_group" "this" {
  replication_group_id = var.name
  description          = "The latest features of ${var.name}"
  engine               = "valkey"
  engine_version       = "8.0"
  node_type            = var.cache_type
  port                 = 6379
  parameter_group_name = aws_elasticache_parameter_group.this.name

  num_cache_clusters         = 2
  automatic_failover_enabled = true
  multi_az_enabled           = true
  subnet_group_name          = aws_elasticache_subnet_group.this.name
  security_group_ids         = [aws_security_group.servers["cache"].id]

  transit_encryption_enabled = true
  transit_encryption_mode    = "required"
  at_rest_encryption_enabled = true
  kms_key_id                 = aws_kms_key.this["data"].arn
  auth_token                 = random_password.cache.result
  auth_token_update_strategy = "SET"

  snapshot_retention_limit = 0
  maintenance_window       = "sun:03:00-sun:04:00"
}
