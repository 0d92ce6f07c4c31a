# Kafka by MSK: three brokers, TLS alone, and users by SCRAM-SHA-512, the one mechanism that both MSK and the clients
# speak (docs/adr/0049-on-aws-kafka-signs-in-by-scram-and-bars-are-in-plain-postgresql.md). Topics and their permissions
# are not here: `tradeloop topics apply` and `tradeloop topics permit` make them of the catalogue.

resource "aws_msk_configuration" "this" {
  name           = var.name
  kafka_versions = [var.kafka_version]

  server_properties = <<-PROPERTIES
    auto.create.topics.enable=false
    default.replication.factor=3
    min.insync.replicas=2
    unclean.leader.election.enable=false
    allow.everyone.if.no.acl.found=${!var.kafka_closed}
  PROPERTIES

  lifecycle {
    create_before_destroy = true
  }
}

resource "aws_msk_cluster" "this" {
  cluster_name           = var.name
  kafka_version          = var.kafka_version
  number_of_broker_nodes = 3
  enhanced_monitoring    = "PER_TOPIC_PER_BROKER"

  broker_node_group_info {
    instance_type   = var.kafka_type
    client_subnets  = [for subnet in aws_subnet.servers : subnet.id]
    security_groups = [aws_security_group.servers["kafka"].id]

    connectivity_info {
      public_access {
        type = "DISABLED"
      }
    }

    storage_info {
      ebs_storage_info {
        volume_size = var.kafka_storage_gb
      }
    }
  }

  client_authentication {
    unauthenticated = false

    sasl {
      scram = true
      iam   = false
    }
  }

  encryption_info {
    encryption_at_rest_kms_key_arn = aws_kms_key.this["data"].arn

    encryption_in_transit {
      client_broker = "TLS"
      in_cluster    = true
    }
  }

  configuration_info {
    arn      = aws_msk_configuration.this.arn
    revision = aws_msk_configuration.this.latest_revision
  }

  logging_info {
    broker_logs {
      cloudwatch_logs {
        enabled   = true
        log_group = aws_cloudwatch_log_group.this["kafka"].name
      }
    }
  }

  lifecycle {
    prevent_destroy = true # MSK has no protection of its own
  }
}

# A user is a secret of a certain name and form, which MSK reads.

resource "aws_secretsmanager_secret" "kafka_user" {
  for_each = local.kafka_users

  name                    = "AmazonMSK_${var.name}_${each.key}"
  description             = "Kafka knows ${each.key} by this"
  kms_key_id              = aws_kms_key.this["passwords"].arn
  recovery_window_in_days = 30
}

resource "aws_secretsmanager_secret_version" "kafka_user" {
  for_each = local.kafka_users

  secret_id                = aws_secretsmanager_secret.kafka_user[each.key].id
  secret_string_wo         = jsonencode({ username = each.key, password = local.passwords[each.value] })
  secret_string_wo_version = var.passwords_version
}

resource "aws_secretsmanager_secret_policy" "kafka_user" {
  for_each = local.kafka_users

  secret_arn = aws_secretsmanager_secret.kafka_user[each.key].arn
  policy     = data.aws_iam_policy_document.kafka_user[each.key].json
}

data "aws_iam_policy_document" "kafka_user" {
  for_each = local.kafka_users

  statement {
    sid       = "AWSKafkaResourcePolicy"
    actions   = ["secretsmanager:GetSecretValue"]
    resources = [aws_secretsmanager_secret.kafka_user[each.key].arn]

    principals {
      type        = "Service"
      identifiers = ["kafka.amazonaws.com"]
    }
  }
}

resource "aws_msk_single_scram_secret_association" "user" {
  for_each = local.kafka_users

  cluster_arn = aws_msk_cluster.this.arn
  secret_arn  = aws_secretsmanager_secret.kafka_user[each.key].arn

  depends_on = [aws_secretsmanager_secret_version.kafka_user, aws_secretsmanager_secret_policy.kafka_user]
}
