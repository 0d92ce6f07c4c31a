variable "account_id" {
  description = "The AWS account that all of it belongs to; with credentials of another one nothing is done."
  type        = string

  validation {
    condition     = can(regex("^[0-9]{12}$", var.account_id))
    error_message = "An account has twelve digits."
  }
}

variable "region" {
  description = "The region, such as eu-central-1."
  type        = string

  validation {
    condition     = can(regex("^[a-z]{2}(-[a-z]+)+-[0-9]$", var.region))
    error_message = "A region is written like eu-central-1."
  }
}

variable "zones" {
  description = "Three availability zones of the region: a server has a copy in each."
  type        = list(string)

  validation {
    condition     = length(distinct(var.zones)) == 3 && length(var.zones) == 3
    error_message = "Name three different zones: three brokers with min.insync.replicas=2 survive the loss of one."
  }
  validation {
    condition     = alltrue([for zone in var.zones : startswith(zone, var.region)])
    error_message = "Each zone begins with the name of its region."
  }
}

variable "environment" {
  description = "What this is for; part of names and tags."
  type        = string
  default     = "production"

  validation {
    condition     = contains(["staging", "production"], var.environment)
    error_message = "There are overlays for staging and production."
  }
}

variable "name" {
  description = "Stands before the names of what is made here."
  type        = string
  default     = "tradeloop"

  validation {
    condition     = can(regex("^[a-z][a-z0-9-]{1,18}[a-z0-9]$", var.name))
    error_message = "Small letters, digits and hyphens, 3 to 20 of them, a letter first."
  }
}

variable "tags" {
  description = "Further tags of everything, such as a cost centre."
  type        = map(string)
  default     = {}
}

variable "network_cidr" {
  description = "Addresses of the network: a private /16, which the policy `venues` of the cluster keeps closed."
  type        = string
  default     = "10.40.0.0/16"

  validation {
    condition     = can(cidrnetmask(var.network_cidr)) && endswith(var.network_cidr, "/16")
    error_message = "Take a /16: twelve subnets come out of it."
  }
  validation {
    condition     = can(regex("^(10\\.|192\\.168\\.|172\\.(1[6-9]|2[0-9]|3[01])\\.)", var.network_cidr))
    error_message = "Take private addresses (10/8, 172.16/12, 192.168/16)."
  }
}

variable "api_cidrs" {
  description = "Networks that may reach the API server of Kubernetes from outside; none means from within alone."
  type        = list(string)
  default     = []

  validation {
    condition     = alltrue([for cidr in var.api_cidrs : can(cidrnetmask(cidr)) && tonumber(split("/", cidr)[1]) >= 16])
    error_message = "Name networks of at most a /16, not the internet."
  }
}

variable "administrators" {
  description = "ARNs of the IAM roles that may do all in the cluster; who makes it is not among them by itself."
  type        = set(string)

  validation {
    condition     = length(var.administrators) > 0
    error_message = "Name one role at least: without it nobody gets into the cluster."
  }
  validation {
    condition     = alltrue([for arn in var.administrators : can(regex("^arn:[a-z-]+:iam::[0-9]{12}:role/", arn))])
    error_message = "Name roles by their ARNs."
  }
}

variable "operators" {
  description = "ARNs of the IAM roles that may change what is in the namespace `tradeloop`."
  type        = set(string)
  default     = []

  validation {
    condition     = alltrue([for arn in var.operators : can(regex("^arn:[a-z-]+:iam::[0-9]{12}:role/", arn))])
    error_message = "Name roles by their ARNs."
  }
}

variable "kubernetes_version" {
  description = "The version of Kubernetes: the manifests want 1.27 or later."
  type        = string
  default     = "1.34"

  validation {
    condition     = can(regex("^1\\.(2[7-9]|[3-9][0-9])$", var.kubernetes_version))
    error_message = "Take 1.27 or later, written like 1.34."
  }
}

variable "addon_versions" {
  description = "Versions of add-ons by their names; one that is not named gets the default for this Kubernetes."
  type        = map(string)
  default     = {}

  validation {
    condition     = length(setsubtract(keys(var.addon_versions), local.addons)) == 0
    error_message = "An add-on of this name is not installed here: see cluster.tf."
  }
}

variable "node_types" {
  description = "Types of the machines that pods run on, all of one size."
  type        = list(string)
  default     = ["m7i.xlarge"]

  validation {
    condition     = length(var.node_types) > 0
    error_message = "Name one type at least."
  }
}

variable "nodes" {
  description = "How many machines: at least one a zone."
  type        = object({ min = number, max = number })
  default     = { min = 3, max = 6 }

  validation {
    condition     = var.nodes.min >= 3 && var.nodes.max >= var.nodes.min
    error_message = "At least three, and no fewer at most than at least."
  }
}

variable "one_nat" {
  description = "One way out for all zones: cheaper, and gone with its zone."
  type        = bool
  default     = false
}

variable "kafka_version" {
  description = "The version of Kafka, without ZooKeeper. Tests of this project run on 4.3, which MSK may not have."
  type        = string
  default     = "4.1.x.kraft"

  validation {
    condition     = can(regex("^[34]\\.[0-9]+\\.x\\.kraft$", var.kafka_version))
    error_message = "Written like 4.1.x.kraft."
  }
}

variable "kafka_type" {
  description = "The type of each of the three brokers."
  type        = string
  default     = "kafka.m7g.large"

  validation {
    condition     = startswith(var.kafka_type, "kafka.")
    error_message = "Types of brokers begin with kafka."
  }
}

variable "kafka_storage_gb" {
  description = "Storage of each broker: docs/operations.md has what topics take."
  type        = number
  default     = 500

  validation {
    condition     = var.kafka_storage_gb >= 100 && var.kafka_storage_gb <= 16384
    error_message = "From 100 to 16384 GB."
  }
}

variable "kafka_closed" {
  description = "Whether what no permission names is denied: false until there are some (docs/terraform.md)."
  type        = bool
  default     = true
}

variable "managed_postgres" {
  description = "PostgreSQL by RDS, without TimescaleDB. False leaves it to CloudNativePG in the cluster."
  type        = bool
  default     = true
}

variable "postgres_version" {
  description = "The version of PostgreSQL; tests of this project run on 15 and 17."
  type        = string
  default     = "17"

  validation {
    condition     = contains(["15", "16", "17"], split(".", var.postgres_version)[0])
    error_message = "From 15 to 17."
  }
}

variable "postgres_class" {
  description = "The class of the database's machines."
  type        = string
  default     = "db.m7g.large"

  validation {
    condition     = startswith(var.postgres_class, "db.")
    error_message = "Classes of databases begin with db."
  }
}

variable "postgres_storage_gb" {
  description = "Storage of the database, and up to how much it grows by itself."
  type        = object({ now = number, max = number })
  default     = { now = 200, max = 1000 }

  validation {
    condition     = var.postgres_storage_gb.now >= 20
    error_message = "At least 20 GB."
  }
  validation {
    condition     = var.postgres_storage_gb.max >= var.postgres_storage_gb.now * 1.1
    error_message = "It has to have room to grow by a tenth."
  }
}

variable "cache_type" {
  description = "The type of the two nodes of Valkey."
  type        = string
  default     = "cache.t4g.small"

  validation {
    condition     = startswith(var.cache_type, "cache.")
    error_message = "Types of caches begin with cache."
  }
}

variable "passwords_version" {
  description = "Counts up: with each number all passwords but the cache's are made anew."
  type        = number
  default     = 1

  validation {
    condition     = var.passwords_version >= 1 && floor(var.passwords_version) == var.passwords_version
    error_message = "A whole number from 1."
  }
}

variable "backup_days" {
  description = "For how long backups of the database are kept, to any second of them."
  type        = number
  default     = 14

  validation {
    condition     = var.backup_days >= 7 && var.backup_days <= 35
    error_message = "From 7 to 35 days: a backup that is not kept is none."
  }
}

variable "archive_days" {
  description = "For how long dumps in the bucket of backups are kept. Records of trading: five years, or seven."
  type        = number
  default     = 1827

  validation {
    condition     = var.archive_days >= 365
    error_message = "At least a year: Kafka forgets orders and fills after 365 days."
  }
}

variable "deletion_protection" {
  description = "Whether cluster and database refuse to be deleted. False only to take all of it down."
  type        = bool
  default     = true
}

variable "ci_repository" {
  description = "The repository on GitHub whose tags push images, as OWNER/NAME; none means nobody's."
  type        = string
  default     = null

  validation {
    condition     = var.ci_repository == null || can(regex("^[A-Za-z0-9-]+/[A-Za-z0-9._-]+$", var.ci_repository))
    error_message = "Written as OWNER/NAME."
  }
}

variable "monthly_budget_usd" {
  description = "What a month may cost: at four fifths of it, and where it is expected to be passed, a mail is sent."
  type        = number

  validation {
    condition     = var.monthly_budget_usd > 0
    error_message = "More than nothing."
  }
}

variable "budget_email" {
  description = "Who gets that mail."
  type        = string

  validation {
    condition     = can(regex("^[^@ ]+@[^@ ]+\\.[^@ ]+$", var.budget_email))
    error_message = "An address of mail."
  }
}
