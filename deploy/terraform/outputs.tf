# What the overlay is told: docs/terraform.md says where each goes.

output "kubeconfig_command" {
  description = "Lets kubectl reach the cluster."
  value       = "aws eks update-kubeconfig --region ${var.region} --name ${aws_eks_cluster.this.name}"
}

output "registry" {
  description = "Where images are pushed to; repositories follow after a slash."
  value       = "${var.account_id}.dkr.ecr.${var.region}.amazonaws.com/${var.name}"
}

output "kafka_bootstrap" {
  description = "Brokers, for SASL_SSL with SCRAM-SHA-512."
  value       = aws_msk_cluster.this.bootstrap_brokers_sasl_scram
}

output "postgres_host" {
  description = "The database's name; empty where CloudNativePG keeps it."
  value       = var.managed_postgres ? aws_db_instance.this[0].address : ""
}

output "cache_host" {
  description = "The name of the cache that is written to, for TLS on port 6379."
  value       = aws_elasticache_replication_group.this.primary_endpoint_address
}

output "secret" {
  description = "The entry of the Secrets Manager that the ExternalSecrets ask for."
  value       = aws_secretsmanager_secret.this.name
}

output "region" {
  description = "Where all of it is."
  value       = var.region
}

output "external_secrets_role" {
  description = "The role of the ServiceAccount `secrets`."
  value       = aws_iam_role.external_secrets.arn
}

output "servers_cidrs" {
  description = "Where servers are: the networks that pods may speak to."
  value       = [for subnet in aws_subnet.servers : subnet.cidr_block]
}

output "file_system" {
  description = "The file system of the storage class for volumes that several pods mount."
  value       = aws_efs_file_system.this.id
}

output "artifacts_bucket" {
  description = "The bucket for artifacts of MLflow, once its image can speak to one."
  value       = aws_s3_bucket.this["artifacts"].bucket
}

output "backups_bucket" {
  description = "The bucket for dumps."
  value       = aws_s3_bucket.this["backups"].bucket
}

output "ci_role" {
  description = "The role that a release takes to push images; empty without `ci_repository`."
  value       = var.ci_repository == null ? "" : aws_iam_role.ci[0].arn
}
