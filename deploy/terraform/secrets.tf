# Passwords. Each is made at random in the run that stores it, and is in no file and not in the state; the Secrets
# Manager alone has it. External Secrets makes of them the Secrets of deploy/k8s/components/external-secrets, whose
# entry and properties have the names that are here.

locals {
  namespace = "tradeloop"
  secret    = "tradeloop"

  kafka_users = {
    tradeloop  = "KAFKA_PASSWORD"
    ingest     = "INGEST_PASSWORD"
    preprocess = "PREPROCESS_PASSWORD"
    training   = "TRAINING_PASSWORD"
    inference  = "INFERENCE_PASSWORD"
    execution  = "EXECUTION_PASSWORD"
  }

  made = setunion(values(local.kafka_users), ["POSTGRES_PASSWORD", "MLFLOW_PASSWORD"])

  # Read back, so that a server gets what the secret has, though a run ended between the two.
  passwords = jsondecode(ephemeral.aws_secretsmanager_secret_version.this.secret_string)
}

ephemeral "random_password" "this" {
  for_each = local.made

  length  = 48
  special = false # parts of URLs as they are
}

resource "aws_secretsmanager_secret" "this" {
  name                    = local.secret
  description             = "Passwords of Tradeloop's servers and services"
  kms_key_id              = aws_kms_key.this["passwords"].arn
  recovery_window_in_days = 30
}

resource "aws_secretsmanager_secret_version" "this" {
  secret_id = aws_secretsmanager_secret.this.id
  secret_string_wo = jsonencode(merge(
    { for name, each in ephemeral.random_password.this : name => each.result },
    { REDIS_PASSWORD = random_password.cache.result },
  ))
  secret_string_wo_version = var.passwords_version
}

ephemeral "aws_secretsmanager_secret_version" "this" {
  secret_id  = aws_secretsmanager_secret_version.this.secret_id
  version_id = aws_secretsmanager_secret_version.this.version_id
}
