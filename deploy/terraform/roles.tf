# A role for each purpose. A policy that is written here names its actions and resources one by one; those of AWS are
# for parts of EKS, which AWS wants to have them.

locals {
  prefix = "arn:${data.aws_partition.this.partition}:iam::aws:policy"

  managed = {
    cluster     = { role = aws_iam_role.cluster.name, policy = "AmazonEKSClusterPolicy" }
    node_worker = { role = aws_iam_role.node.name, policy = "AmazonEKSWorkerNodeMinimalPolicy" }
    node_images = { role = aws_iam_role.node.name, policy = "AmazonEC2ContainerRegistryPullOnly" }
    addon_pods  = { role = aws_iam_role.addon["vpc-cni"].name, policy = "AmazonEKS_CNI_Policy" }
    addon_disks = {
      role   = aws_iam_role.addon["aws-ebs-csi-driver"].name,
      policy = "service-role/AmazonEBSCSIDriverPolicy"
    }
    addon_mounts = {
      role   = aws_iam_role.addon["aws-efs-csi-driver"].name,
      policy = "service-role/AmazonEFSCSIDriverPolicy"
    }
  }
}

resource "aws_iam_role_policy_attachment" "managed" {
  for_each = local.managed

  role       = each.value.role
  policy_arn = "${local.prefix}/${each.value.policy}"
}

# Who may take a role: a service of AWS, and for pods the agent of EKS.

data "aws_iam_policy_document" "trust" {
  for_each = {
    cluster   = { service = "eks.amazonaws.com", actions = ["sts:AssumeRole"] }
    node      = { service = "ec2.amazonaws.com", actions = ["sts:AssumeRole"] }
    flow_logs = { service = "vpc-flow-logs.amazonaws.com", actions = ["sts:AssumeRole"] }
    pod       = { service = "pods.eks.amazonaws.com", actions = ["sts:AssumeRole", "sts:TagSession"] }
  }

  statement {
    actions = each.value.actions

    principals {
      type        = "Service"
      identifiers = [each.value.service]
    }

    condition {
      test     = "StringEqualsIfExists"
      variable = "aws:SourceAccount"
      values   = [var.account_id]
    }
  }
}

resource "aws_iam_role" "cluster" {
  name               = "${var.name}-cluster"
  assume_role_policy = data.aws_iam_policy_document.trust["cluster"].json
}

resource "aws_iam_role" "node" {
  name               = "${var.name}-node"
  assume_role_policy = data.aws_iam_policy_document.trust["node"].json
}

resource "aws_iam_role" "addon" {
  for_each = local.addon_accounts

  name               = "${var.name}-${each.key}"
  assume_role_policy = data.aws_iam_policy_document.trust["pod"].json
}

# The log of connections.

resource "aws_iam_role" "flow_logs" {
  name               = "${var.name}-flow-logs"
  assume_role_policy = data.aws_iam_policy_document.trust["flow_logs"].json
}

resource "aws_iam_role_policy" "flow_logs" {
  name   = "write"
  role   = aws_iam_role.flow_logs.id
  policy = data.aws_iam_policy_document.flow_logs.json
}

data "aws_iam_policy_document" "flow_logs" {
  statement {
    actions   = ["logs:CreateLogStream", "logs:PutLogEvents", "logs:DescribeLogStreams"]
    resources = [aws_cloudwatch_log_group.this["flows"].arn, "${aws_cloudwatch_log_group.this["flows"].arn}:*"]
  }
}

# External Secrets reads the one entry, as the ServiceAccount `secrets` of the overlay.

resource "aws_iam_role" "external_secrets" {
  name               = "${var.name}-external-secrets"
  assume_role_policy = data.aws_iam_policy_document.external_secrets_trust.json
}

data "aws_iam_policy_document" "external_secrets_trust" {
  statement {
    actions = ["sts:AssumeRoleWithWebIdentity"]

    principals {
      type        = "Federated"
      identifiers = [aws_iam_openid_connect_provider.cluster.arn]
    }

    condition {
      test     = "StringEquals"
      variable = "${local.issuer}:sub"
      values   = ["system:serviceaccount:${local.namespace}:secrets"]
    }

    condition {
      test     = "StringEquals"
      variable = "${local.issuer}:aud"
      values   = ["sts.amazonaws.com"]
    }
  }
}

locals {
  issuer = trimprefix(aws_eks_cluster.this.identity[0].oidc[0].issuer, "https://")
}

resource "aws_iam_role_policy" "external_secrets" {
  name   = "read"
  role   = aws_iam_role.external_secrets.id
  policy = data.aws_iam_policy_document.external_secrets.json
}

data "aws_iam_policy_document" "external_secrets" {
  statement {
    actions   = ["secretsmanager:GetSecretValue", "secretsmanager:DescribeSecret"]
    resources = [aws_secretsmanager_secret.this.arn]
  }

  statement {
    actions   = ["kms:Decrypt"]
    resources = [aws_kms_key.this["passwords"].arn]

    condition {
      test     = "StringEquals"
      variable = "kms:EncryptionContext:SecretARN"
      values   = [aws_secretsmanager_secret.this.arn]
    }
  }
}

# MLflow has the bucket of its artifacts.

resource "aws_iam_role" "mlflow" {
  name               = "${var.name}-mlflow"
  assume_role_policy = data.aws_iam_policy_document.trust["pod"].json
}

resource "aws_iam_role_policy" "mlflow" {
  name   = "artifacts"
  role   = aws_iam_role.mlflow.id
  policy = data.aws_iam_policy_document.mlflow.json
}

data "aws_iam_policy_document" "mlflow" {
  statement {
    actions   = ["s3:ListBucket"]
    resources = [aws_s3_bucket.this["artifacts"].arn]
  }

  statement {
    actions   = ["s3:GetObject", "s3:PutObject", "s3:DeleteObject", "s3:AbortMultipartUpload"]
    resources = ["${aws_s3_bucket.this["artifacts"].arn}/*"]
  }

  statement {
    actions   = ["kms:Decrypt", "kms:GenerateDataKey"]
    resources = [aws_kms_key.this["data"].arn]

    condition {
      test     = "StringEquals"
      variable = "kms:ViaService"
      values   = ["s3.${var.region}.amazonaws.com"]
    }
  }
}

# Who writes backups adds to their bucket, and neither reads nor deletes what lies there.

resource "aws_iam_role" "backups" {
  name               = "${var.name}-backups"
  assume_role_policy = data.aws_iam_policy_document.trust["pod"].json
}

resource "aws_iam_role_policy" "backups" {
  name   = "write"
  role   = aws_iam_role.backups.id
  policy = data.aws_iam_policy_document.backups.json
}

data "aws_iam_policy_document" "backups" {
  statement {
    actions   = ["s3:PutObject", "s3:AbortMultipartUpload"]
    resources = ["${aws_s3_bucket.this["backups"].arn}/*"]
  }

  statement {
    actions   = ["kms:Decrypt", "kms:GenerateDataKey"] # parts of an upload are joined by who can read them
    resources = [aws_kms_key.this["data"].arn]

    condition {
      test     = "StringEquals"
      variable = "kms:ViaService"
      values   = ["s3.${var.region}.amazonaws.com"]
    }
  }
}

resource "aws_eks_pod_identity_association" "backups" {
  cluster_name    = aws_eks_cluster.this.name
  namespace       = local.namespace
  service_account = "backups"
  role_arn        = aws_iam_role.backups.arn
}

# Continuous integration pushes images of a tag, by a token of GitHub: there is no key to lose.

resource "aws_iam_openid_connect_provider" "ci" {
  count = var.ci_repository == null ? 0 : 1

  url            = "https://token.actions.githubusercontent.com"
  client_id_list = ["sts.amazonaws.com"]
}

resource "aws_iam_role" "ci" {
  count = var.ci_repository == null ? 0 : 1

  name                 = "${var.name}-ci"
  assume_role_policy   = data.aws_iam_policy_document.ci_trust[0].json
  max_session_duration = 3600
}

data "aws_iam_policy_document" "ci_trust" {
  count = var.ci_repository == null ? 0 : 1

  statement {
    actions = ["sts:AssumeRoleWithWebIdentity"]

    principals {
      type        = "Federated"
      identifiers = [aws_iam_openid_connect_provider.ci[0].arn]
    }

    condition {
      test     = "StringEquals"
      variable = "token.actions.githubusercontent.com:aud"
      values   = ["sts.amazonaws.com"]
    }

    condition {
      test     = "StringLike"
      variable = "token.actions.githubusercontent.com:sub"
      values   = ["repo:${var.ci_repository}:ref:refs/tags/v*"]
    }
  }
}

resource "aws_iam_role_policy" "ci" {
  count = var.ci_repository == null ? 0 : 1

  name   = "push"
  role   = aws_iam_role.ci[0].id
  policy = data.aws_iam_policy_document.ci.json
}

data "aws_iam_policy_document" "ci" {
  statement {
    actions   = ["ecr:GetAuthorizationToken"]
    resources = ["*"] # it signs in to the registry, and knows no other resource
  }

  statement {
    actions = [
      "ecr:BatchCheckLayerAvailability",
      "ecr:BatchGetImage",
      "ecr:CompleteLayerUpload",
      "ecr:InitiateLayerUpload",
      "ecr:PutImage",
      "ecr:UploadLayerPart",
    ]
    resources = [for repository in aws_ecr_repository.this : repository.arn]
  }
}
