# A key for each purpose, so that whoever may read one thing cannot read another. Without a policy of its own a key
# obeys the IAM policies of the account.

locals {
  keys = {
    cluster   = "Secrets of Kubernetes"
    data      = "Kafka, the database, the cache, files, buckets and images"
    passwords = "Passwords in the Secrets Manager"
  }
}

resource "aws_kms_key" "this" {
  for_each = local.keys

  description             = "${var.name}: ${each.value}"
  enable_key_rotation     = true
  deletion_window_in_days = 30

  lifecycle {
    prevent_destroy = true
  }
}

resource "aws_kms_alias" "this" {
  for_each = local.keys

  name          = "alias/${var.name}-${each.key}"
  target_key_id = aws_kms_key.this[each.key].key_id
}

# Logs are written by a service of AWS, which a policy has to let in.
resource "aws_kms_key" "logs" {
  description             = "${var.name}: logs"
  enable_key_rotation     = true
  deletion_window_in_days = 30
  policy                  = data.aws_iam_policy_document.logs_key.json

  lifecycle {
    prevent_destroy = true
  }
}

data "aws_iam_policy_document" "logs_key" {
  statement {
    sid       = "AsTheAccountSays"
    actions   = ["kms:*"]
    resources = ["*"] # this key: the policy is its own

    principals {
      type        = "AWS"
      identifiers = ["arn:${data.aws_partition.this.partition}:iam::${var.account_id}:root"]
    }
  }

  statement {
    sid       = "LogsOfThisStack"
    resources = ["*"] # this key
    actions = [
      "kms:Decrypt",
      "kms:DescribeKey",
      "kms:Encrypt",
      "kms:GenerateDataKey",
      "kms:ReEncryptFrom",
      "kms:ReEncryptTo",
    ]

    principals {
      type        = "Service"
      identifiers = ["logs.${var.region}.amazonaws.com"]
    }

    condition {
      test     = "ArnEquals"
      variable = "kms:EncryptionContext:aws:logs:arn"
      values   = [for group in local.log_groups : "${local.logs}:log-group:${group}"]
    }
  }
}

data "aws_partition" "this" {}

locals {
  logs = "arn:${data.aws_partition.this.partition}:logs:${var.region}:${var.account_id}"
  log_groups = merge(
    {
      flows   = "/tradeloop/${var.name}/flows"
      kafka   = "/tradeloop/${var.name}/kafka"
      cluster = "/aws/eks/${var.name}/cluster"
    },
    var.managed_postgres ? { postgres = "/aws/rds/instance/${var.name}/postgresql" } : {},
  )
}

# Made here, before who writes them would make them without a key and without an end.
resource "aws_cloudwatch_log_group" "this" {
  for_each = local.log_groups

  name              = each.value
  retention_in_days = each.key == "cluster" ? 365 : 90
  kms_key_id        = aws_kms_key.logs.arn
}
