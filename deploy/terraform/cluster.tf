# Kubernetes: an API server that only named networks reach, nodes without public addresses, and identities for pods.

resource "aws_eks_cluster" "this" {
  name                          = var.name
  version                       = var.kubernetes_version
  role_arn                      = aws_iam_role.cluster.arn
  bootstrap_self_managed_addons = false
  deletion_protection           = var.deletion_protection
  enabled_cluster_log_types     = ["api", "audit", "authenticator", "controllerManager", "scheduler"]

  access_config {
    authentication_mode                         = "API"
    bootstrap_cluster_creator_admin_permissions = false
  }

  encryption_config {
    resources = ["secrets"]

    provider {
      key_arn = aws_kms_key.this["cluster"].arn
    }
  }

  upgrade_policy {
    support_type = "STANDARD" # no surcharge for a version that is past its end: it is upgraded
  }

  vpc_config {
    subnet_ids              = [for subnet in aws_subnet.private : subnet.id]
    endpoint_private_access = true
    endpoint_public_access  = length(var.api_cidrs) > 0
    public_access_cidrs     = length(var.api_cidrs) > 0 ? var.api_cidrs : null
  }

  depends_on = [aws_iam_role_policy_attachment.managed, aws_cloudwatch_log_group.this]
}

# People: administrators of the cluster, and operators of the namespace.

resource "aws_eks_access_entry" "people" {
  for_each = setunion(var.administrators, var.operators)

  cluster_name  = aws_eks_cluster.this.name
  principal_arn = each.key
}

resource "aws_eks_access_policy_association" "administrators" {
  for_each = var.administrators

  cluster_name  = aws_eks_cluster.this.name
  principal_arn = aws_eks_access_entry.people[each.key].principal_arn
  policy_arn    = "arn:${data.aws_partition.this.partition}:eks::aws:cluster-access-policy/AmazonEKSClusterAdminPolicy"

  access_scope {
    type = "cluster"
  }
}

resource "aws_eks_access_policy_association" "operators" {
  for_each = setsubtract(var.operators, var.administrators)

  cluster_name  = aws_eks_cluster.this.name
  principal_arn = aws_eks_access_entry.people[each.key].principal_arn
  policy_arn    = "arn:${data.aws_partition.this.partition}:eks::aws:cluster-access-policy/AmazonEKSEditPolicy"

  access_scope {
    type       = "namespace"
    namespaces = [local.namespace]
  }
}

# Machines. What runs on one cannot take its credentials: their service answers only to it, by tokens, at one hop.

resource "aws_launch_template" "nodes" {
  name_prefix            = "${var.name}-"
  update_default_version = true

  metadata_options {
    http_endpoint               = "enabled"
    http_tokens                 = "required"
    http_put_response_hop_limit = 1
  }

  block_device_mappings {
    device_name = "/dev/xvda"

    ebs {
      volume_size           = 100 # the image of training alone has several GB
      volume_type           = "gp3"
      encrypted             = true # by the account's own key: machines of a group may use no other without a grant
      delete_on_termination = true
    }
  }

  tag_specifications {
    resource_type = "instance"
    tags          = { Name = "${var.name}-node" }
  }
}

resource "aws_eks_node_group" "this" {
  cluster_name           = aws_eks_cluster.this.name
  node_group_name_prefix = "${var.name}-"
  node_role_arn          = aws_iam_role.node.arn
  subnet_ids             = [for subnet in aws_subnet.private : subnet.id]
  ami_type               = "AL2023_x86_64_STANDARD"
  capacity_type          = "ON_DEMAND"
  instance_types         = var.node_types

  launch_template {
    id      = aws_launch_template.nodes.id
    version = aws_launch_template.nodes.latest_version
  }

  scaling_config {
    min_size     = var.nodes.min
    max_size     = var.nodes.max
    desired_size = var.nodes.min
  }

  update_config {
    max_unavailable = 1
  }

  lifecycle {
    create_before_destroy = true
    ignore_changes        = [scaling_config[0].desired_size] # an autoscaler's
  }

  depends_on = [aws_iam_role_policy_attachment.managed, aws_eks_addon.early]
}

# Add-ons. Nodes become ready only with the first ones; the others need nodes.

locals {
  addons       = concat(local.addons_early, local.addons_late)
  addons_early = ["vpc-cni", "kube-proxy", "eks-pod-identity-agent"]
  addons_late  = ["coredns", "aws-ebs-csi-driver", "aws-efs-csi-driver", "snapshot-controller", "metrics-server"]

  # The add-ons that ask AWS, and the ServiceAccount by which each does.
  addon_accounts = {
    vpc-cni            = "aws-node"
    aws-ebs-csi-driver = "ebs-csi-controller-sa"
    aws-efs-csi-driver = "efs-csi-controller-sa"
  }
}

resource "aws_eks_addon" "early" {
  for_each = toset(local.addons_early)

  cluster_name  = aws_eks_cluster.this.name
  addon_name    = each.key
  addon_version = lookup(var.addon_versions, each.key, null)
  # Without this the network policies of deploy/k8s are words: nothing would hold pods to them.
  configuration_values = each.key == "vpc-cni" ? jsonencode({ enableNetworkPolicy = "true" }) : null

  dynamic "pod_identity_association" {
    for_each = contains(keys(local.addon_accounts), each.key) ? [local.addon_accounts[each.key]] : []

    content {
      role_arn        = aws_iam_role.addon[each.key].arn
      service_account = pod_identity_association.value
    }
  }
}

resource "aws_eks_addon" "late" {
  for_each = toset(local.addons_late)

  cluster_name  = aws_eks_cluster.this.name
  addon_name    = each.key
  addon_version = lookup(var.addon_versions, each.key, null)

  dynamic "pod_identity_association" {
    for_each = contains(keys(local.addon_accounts), each.key) ? [local.addon_accounts[each.key]] : []

    content {
      role_arn        = aws_iam_role.addon[each.key].arn
      service_account = pod_identity_association.value
    }
  }

  depends_on = [aws_eks_node_group.this]
}

# Identities of pods: by the agent on their node where the pod itself asks, by a token of the ServiceAccount where an
# operator asks for it.

resource "aws_eks_pod_identity_association" "mlflow" {
  cluster_name    = aws_eks_cluster.this.name
  namespace       = local.namespace
  service_account = "mlflow"
  role_arn        = aws_iam_role.mlflow.arn
}

resource "aws_iam_openid_connect_provider" "cluster" {
  url            = aws_eks_cluster.this.identity[0].oidc[0].issuer
  client_id_list = ["sts.amazonaws.com"]
}
