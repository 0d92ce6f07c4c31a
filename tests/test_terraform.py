"""deploy/terraform: its HCL by itself, its names against the code and the manifests, and its plan where a program is.

It was never applied: docs/terraform.md. OpenTofu or Terraform validates and plans it here with the schemas of
tests/terraform_schema.json and providers that make nothing.
"""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from ipaddress import ip_network
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml

from deploy.kubernetes.render import rendered
from deploy.kubernetes.secrets import NAMES
from deploy.terraform import overlay
from tests.manifests import complaints as complaints_of_manifests
from tests.manifests import of_kind
from tests.terraform import FOLDERS, ROOT, SCHEMA, TERRAFORM, complaints, named, things
from tests.terraform_provider import json_type, providers
from tradeloop.cli.client.deployment import SERVICES
from tradeloop.common.bus.kafka.settings import KafkaSettings
from tradeloop.common.messages.topics import accesses

K8S = ROOT / "deploy" / "k8s"
PAGE = (ROOT / "docs" / "terraform.md").read_text()
EXAMPLE = "production.tfvars.example"


def objects(file: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((K8S / file).read_text()))


def local(name: str) -> Any:
    return named(TERRAFORM, "locals")[name]


@pytest.mark.parametrize("folder", FOLDERS)
def test_nothing_is_wrong_with_a_folder(folder: str) -> None:
    assert complaints(FOLDERS[folder]) == []


MUTATIONS: Sequence[tuple[str, str, str, str]] = [
    # Arguments against the schemas
    ("postgres.tf", "  multi_az  ", "  multi_zone  ", "there is no multi_zone"),
    ("kafka.tf", "number_of_broker_nodes = 3", "", "number_of_broker_nodes is missing"),
    ("cluster.tf", "  vpc_config {", "  vpc_config = {", "vpc_config is a block"),
    ("cluster.tf", "  upgrade_policy {", '  arn = "x"\n  upgrade_policy {', "arn is only read"),
    ("storage.tf", "      transition {\n", "      transitions {\n", "there is no transitions"),
    ("registry.tf", '"aws_ecr_lifecycle_policy" "this"', '"aws_ecr_life_policy" "this"', "does not know its type"),
    # References
    ("network.tf", "var.one_nat ?", "var.single_nat ?", "var.single_nat is not there"),
    ("cluster.tf", "aws_iam_role.node.arn", "aws_iam_role.nodes.arn", "aws_iam_role.nodes is not there"),
    ("cluster.tf", "aws_iam_role.node.arn", "aws_iam_role.node.arns", "has no arns"),
    ("variables.tf", 'variable "one_nat"', 'variable "one_exit"', "var.one_exit is used by nobody"),
    # Pins
    ("versions.tf", 'version = "6.25.0"', 'version = ">= 6.0"', "the version of provider aws is open"),
    ("versions.tf", 'required_version = ">= 1.11.0, < 2.0.0"', "", "required_version has no bounds"),
    ("versions.tf", "    random = {", "    chance = {", "provider random is used and not named"),
    # Policies
    ("roles.tf", '"secretsmanager:DescribeSecret"', '"secretsmanager:*"', "it allows secretsmanager:*"),
    ("roles.tf", "resources = [aws_secretsmanager_secret.this.arn]", 'resources = ["*"]', "on everything"),
    ("roles.tf", '"ecr:PutImage"', '"ecr:*"', "it allows ecr:*"),
    ("roles.tf", 'resources = ["*"] # it signs in', 'actions2 = ["x"] # it signs in', "there is no actions2"),
    ("kafka.tf", '["kafka.amazonaws.com"]', '["*"]', "it allows everybody"),
    ("roles.tf", '"AmazonEKSClusterPolicy"', '"AdministratorAccess"', "AdministratorAccess is a policy of AWS"),
    ("roles.tf", "data.aws_iam_policy_document.mlflow.json", 'jsonencode({ Action = "*" })', "is no aws_iam_pol"),
    # Encryption and protection
    ("postgres.tf", "storage_encrypted     = true", "storage_encrypted = false", "storage_encrypted is False"),
    ("postgres.tf", "skip_final_snapshot       = false", "skip_final_snapshot = true", "skip_final_snapshot is True"),
    ("postgres.tf", 'name  = "rds.force_ssl"', 'name  = "rds.log"', "parameter.name is rds.log"),
    ("kafka.tf", 'client_broker = "TLS"', 'client_broker = "TLS_PLAINTEXT"', "client_broker is TLS_PLAINTEXT"),
    ("kafka.tf", "prevent_destroy = true", "prevent_destroy = false", "prevent_destroy is False"),
    ("cache.tf", 'transit_encryption_mode    = "required"', 'transit_encryption_mode = "preferred"', "preferred"),
    ("cluster.tf", 'resources = ["secrets"]', 'resources = ["nothing"]', "encryption_config.resources"),
    ("cluster.tf", 'http_tokens                 = "required"', 'http_tokens = "optional"', "http_tokens is optional"),
    ("cluster.tf", "length(var.api_cidrs) > 0\n", "true\n", "endpoint_public_access is True"),
    ("registry.tf", '"IMMUTABLE"', '"MUTABLE"', "image_tag_mutability is MUTABLE"),
    ("storage.tf", "block_public_policy     = true", "block_public_policy = false", "block_public_policy is False"),
    ("storage.tf", '"aws_s3_bucket_versioning" "this"', '"aws_s3_bucket_versioning" "that"', "has no aws_s3_"),
    ("keys.tf", "enable_key_rotation     = true", "enable_key_rotation = false", "enable_key_rotation is False"),
    ("variables.tf", 'true\n}\n\nvariable "ci_', 'false\n}\n\nvariable "ci_', "variable deletion_protection is False"),
    # Secrets
    ("postgres.tf", 'local.passwords["POSTGRES_PASSWORD"]', '"correct horse"', "password_wo is written down"),
    ("postgres.tf", "  password_wo ", "  password ", "password would be kept in the state"),
    ("outputs.tf", "aws_secretsmanager_secret.this.name", 'local.passwords["MLFLOW_PASSWORD"]', "tells a password"),
    ("variables.tf", 'variable "budget_email"', 'variable "budget_password"', "a secret is no input"),
    # Inputs
    ("variables.tf", '  description = "One way out', '  # description = "One way out', "one_nat has no description"),
]  # fmt: skip


@pytest.mark.parametrize(("file", "old", "new", "told"), MUTATIONS)
def test_what_is_broken_is_told(tmp_path: Path, file: str, old: str, new: str, told: str) -> None:
    shutil.copytree(TERRAFORM, tmp_path / "broken")
    broken = tmp_path / "broken" / file
    assert old in broken.read_text()
    broken.write_text(broken.read_text().replace(old, new, 1))
    assert any(told in each for each in complaints(tmp_path / "broken"))


# Names against the code and the manifests


def asked() -> dict[str, set[str]]:
    """What the ExternalSecrets ask for: entries of the store with their properties."""
    found: dict[str, set[str]] = {}
    for each in objects("components/external-secrets/secrets.yaml"):
        for one in each["spec"]["data"]:
            found.setdefault(one["remoteRef"]["key"], set()).add(one["remoteRef"]["property"])
    return found


def test_the_secret_has_what_the_external_secrets_ask_for_and_nothing_else() -> None:
    made = {*local("kafka_users").values(), *re.findall(r'"(\w+_PASSWORD)"', local("made")), "REDIS_PASSWORD"}
    assert asked() == {local("secret"): made}
    assert made == {f"{name}_PASSWORD" for name in NAMES}
    [stored] = [each for each in things(TERRAFORM) if each.address == "aws_secretsmanager_secret_version.this"]
    assert re.findall(r"(\w+_PASSWORD) =", stored.body["secret_string_wo"]) == ["REDIS_PASSWORD"]


def test_users_of_kafka_are_those_of_the_catalogue_with_the_passwords_that_their_services_are_told() -> None:
    secrets = {each["metadata"]["name"]: each["spec"] for each in objects("components/external-secrets/secrets.yaml")}
    told = {}
    for user in ("tradeloop", *(access.user for access in accesses())):
        spec = secrets["init" if user == "tradeloop" else user]
        [mark] = re.findall(r"\.(\w+)", spec["target"]["template"]["data"][f"{user.upper()}_KAFKA__SASL_PASSWORD"])
        [told[user]] = [one["remoteRef"]["property"] for one in spec["data"] if one["secretKey"] == mark]
    assert local("kafka_users") == told


def test_kafka_takes_what_the_clients_can_speak() -> None:
    spoken = get_args(get_args(KafkaSettings.model_fields["sasl_mechanism"].annotation)[0])
    assert "SCRAM-SHA-512" in spoken  # the one mechanism of MSK with passwords
    assert not {"OAUTHBEARER", "AWS_MSK_IAM"} & set(spoken)
    [cluster] = [each for each in things(TERRAFORM) if each.type == "aws_msk_cluster"]
    [authentication] = cluster.body["client_authentication"]
    [sasl] = authentication["sasl"]
    assert (sasl["scram"], sasl["iam"], "tls" in authentication) == (True, False, False)
    assert re.search(r"kafka = 9096\b", str(local("ports")))


def test_images_namespace_and_accounts_are_those_of_the_manifests() -> None:
    [production] = objects("overlays/production/kustomization.yaml")
    ours = {each["newName"].rpartition("/")[2] for each in production["images"] if "newName" in each}
    assert set(re.findall(r'"(\w+)"', local("images"))) == ours
    assert local("namespace") == production["namespace"]
    store, account = objects("overlays/production/store.yaml")
    [trust] = [each for each in things(TERRAFORM) if each.name == "external_secrets_trust"]
    subjects = [each["values"] for each in trust.body["statement"][0]["condition"] if ":sub" in each["variable"]]
    assert subjects == [[f"system:serviceaccount:${{local.namespace}}:{account['metadata']['name']}"]]
    assert store["metadata"]["name"] == "tradeloop"


def test_servers_are_where_the_policy_for_venues_lets_nobody_go() -> None:
    [venues] = [each for each in objects("base/network.yaml") if each["metadata"]["name"] == "venues"]
    closed = [ip_network(each) for each in venues["spec"]["egress"][0]["to"][0]["ipBlock"]["except"]]
    network = ip_network(named(TERRAFORM, "variable")["network_cidr"]["default"])
    assert any(network.subnet_of(each) for each in closed)  # type: ignore[arg-type]


def test_the_page_names_every_output_and_variable_and_no_other() -> None:
    outputs = set(re.findall(r"^\| `(\w+)` \|", PAGE.split("## Outputs")[1].split("\n## ")[0], re.MULTILINE))
    assert outputs == set(named(TERRAFORM, "output"))
    variables = set(named(TERRAFORM, "variable"))
    assert set(re.findall(r"^(\w+) +=", (TERRAFORM / EXAMPLE).read_text(), re.MULTILINE)) <= variables
    assert set(re.findall(r"-var[= ](\w+)=", PAGE)) <= variables
    assert "never been applied" in PAGE


def test_types_are_read_as_hcl_writes_them() -> None:
    assert json_type("string") == "string"
    assert json_type("set(map(number))") == ["set", ["map", "number"]]
    assert json_type("list(object({a=list(object({b=string})),c=bool}))") == [
        "list",
        ["object", {"a": ["list", ["object", {"b": "string"}]], "c": "bool"}],
    ]


# The overlay

SERVERS = ["10.40.8.0/24", "10.40.9.0/24", "10.40.10.0/24"]


def outputs(**others: Any) -> dict[str, Any]:
    """Something for each output that there is."""
    return {name: f"{name}.example.com" for name in named(TERRAFORM, "output")} | {"servers_cidrs": SERVERS, **others}


def laid(folder: Path, **others: Any) -> list[dict[str, Any]]:
    """The objects of the overlay, rendered beside a copy of the manifests."""
    shutil.copytree(K8S, folder / "k8s", ignore=shutil.ignore_patterns("secrets"))
    place = folder / "terraform" / "overlay"
    place.parent.mkdir()
    overlay.write(outputs(**others), place)
    (place / overlay.CERTIFICATES).write_text("certificates\n")
    return rendered(place)


@pytest.mark.parametrize("host", ["database.example.com", ""])
def test_the_overlay_is_what_an_overlay_has_to_be(tmp_path: Path, host: str) -> None:
    objects = laid(tmp_path, postgres_host=host)
    assert complaints_of_manifests(objects, released=True, pinned=True) == []
    assert len(of_kind(objects, "Cluster")) == (not host)  # of CloudNativePG
    assert {each["metadata"]["name"] for each in of_kind(objects, "StatefulSet")} == {*SERVICES, "mlflow"}


def test_the_overlay_speaks_to_aws_by_tls_and_to_nothing_else(tmp_path: Path) -> None:
    objects = laid(tmp_path, postgres_host="database.example.com")
    told = "\n".join(str(each["spec"]["target"]["template"]) for each in of_kind(objects, "ExternalSecret"))
    assert "@timescaledb" not in told
    assert "redis:6379" not in told
    urls = re.findall(r"@database\.example\.com:5432/\w+(\S*?)['\",}]", told)
    assert len(urls) > 10
    assert set(urls) == {"?sslmode=verify-full&sslrootcert=/etc/rds/rds.pem"}
    stores = re.findall(r"cache_host\.example\.com:6379,password=\{\{ \.REDIS \}\},(\S+?)\"", told)
    assert stores == ["ssl=true"] * 3
    for each in of_kind(objects, "ConfigMap"):
        kafka = {name.rpartition("__")[2]: value for name, value in each["data"].items() if "_KAFKA__" in name}
        if kafka:
            assert kafka["BOOTSTRAP_SERVERS"] == "kafka_bootstrap.example.com"
            assert (kafka["SECURITY_PROTOCOL"], kafka["SASL_MECHANISM"]) == ("SASL_SSL", "SCRAM-SHA-512")
    ports = {each["metadata"]["name"]: each["spec"] for each in of_kind(objects, "NetworkPolicy")}
    opened = {
        name: (rule["ports"][0]["port"], [one["ipBlock"]["cidr"] for one in rule["to"]])
        for name, [rule] in ((name, spec["egress"]) for name, spec in ports.items() if name.endswith("-of-aws"))
    }
    by_name = dict(re.findall(r"(\w+) = (\d+)", (TERRAFORM / "network.tf").read_text().split("ports = merge(")[1]))
    assert opened == {
        "to-kafka-of-aws": (int(by_name["kafka"]), SERVERS),
        "to-redis-of-aws": (int(by_name["cache"]), SERVERS),
        "to-timescaledb-of-aws": (int(by_name["postgres"]), SERVERS),
    }


def test_what_is_yours_in_the_overlay_stays(tmp_path: Path) -> None:
    overlay.write(outputs(), tmp_path / "overlay")
    mine = tmp_path / "overlay" / "sources.yaml"
    mine.write_text("mine: true\n")
    overlay.write(outputs(), tmp_path / "overlay")
    assert mine.read_text() == "mine: true\n"


@pytest.mark.parametrize("told", ["", "{}", "[]", '{"registry": {"value": "x"}}', '{"registry": "x"}'])
def test_what_are_no_outputs_is_told(
    told: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO(told))
    assert overlay.main() == 2
    assert "these are no outputs of deploy/terraform" in capsys.readouterr().err
    assert not (TERRAFORM / "overlay").exists()


# By a program


@pytest.fixture(scope="module", params=["tofu", "terraform"])
def program(request: pytest.FixtureRequest) -> str:
    """A program that reads HCL. No package of Python or Debian has one: without either, only the tests above hold."""
    name: str = request.param
    found = shutil.which(name)
    if found is None:
        pytest.skip(f"{name} is not on the path: what it would validate and plan is held by reading alone")
    return found


class Failed(Exception):
    """The program found something wrong."""


def run(program: str, folder: Path, attached: str, *arguments: str) -> str:
    environment = {**os.environ, "TF_REATTACH_PROVIDERS": attached, "TF_CLI_CONFIG_FILE": os.devnull}
    environment |= {"CHECKPOINT_DISABLE": "1", "TF_IN_AUTOMATION": "1"}
    command, *others = arguments
    done = subprocess.run(
        [program, command, "-no-color", *others],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    if done.returncode:
        raise Failed(done.stdout + done.stderr)
    return done.stdout


@pytest.fixture(scope="module")
def attached() -> Iterator[str]:
    with providers(SCHEMA) as told:
        yield told


def prepared(program: str, folder: Path, attached: str, source: Path = TERRAFORM) -> Path:
    """A copy that has its state beside it, ready to plan."""
    shutil.copytree(source, folder, ignore=shutil.ignore_patterns(".terraform*"))
    if source == TERRAFORM:
        (folder / "backend_override.tf").write_text('terraform {\n  backend "local" {}\n}\n')
    run(program, folder, attached, "init", "-input=false")
    return folder


def planned(program: str, folder: Path, attached: str, **variables: Any) -> dict[str, Any]:
    """The plan with the example's variables and some others. Raises `Failed`."""
    (folder / "others.tfvars.json").write_text(json.dumps(variables))
    files = [f"-var-file={name}" for name in (EXAMPLE, "others.tfvars.json")]
    run(program, folder, attached, "plan", "-input=false", *files, "-out=plan")
    return dict(json.loads(run(program, folder, attached, "show", "-json", "plan")))


@pytest.fixture(scope="module")
def ready(program: str, attached: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepared(program, tmp_path_factory.mktemp("hcl") / "root", attached)


def test_layout_is_the_programs_own(program: str, attached: str) -> None:
    run(program, TERRAFORM, attached, "fmt", "-check", "-diff", "-recursive")


def test_it_is_valid(program: str, ready: Path, attached: str, tmp_path: Path) -> None:
    run(program, ready, attached, "validate")
    state = prepared(program, tmp_path / "state", attached, TERRAFORM / "state")
    run(program, state, attached, "validate")


@pytest.mark.parametrize(
    ("file", "old", "new", "told"),
    [
        ("postgres.tf", "multi_az ", "multi_zone ", "multi_zone"),
        ("postgres.tf", "  password_wo  ", "  password  ", "phemeral"),
        ("network.tf", "cidrsubnet(", "cidrsubnets2(", "cidrsubnets2"),
    ],
)
def test_what_is_invalid_is_told(
    program: str, attached: str, tmp_path: Path, file: str, old: str, new: str, told: str
) -> None:
    folder = prepared(program, tmp_path / "root", attached)
    text = (folder / file).read_text()
    assert old in text
    (folder / file).write_text(text.replace(old, new, 1))
    with pytest.raises(Failed, match=told):
        run(program, folder, attached, "validate")


def test_it_can_be_planned_before_anything_is_there(program: str, ready: Path, attached: str) -> None:
    small = planned(
        program, ready, attached, one_nat=True, managed_postgres=False, ci_repository=None, api_cidrs=[], operators=[]
    )
    types = [each["type"] for each in small["resource_changes"] if each["change"]["actions"] == ["create"]]
    assert types.count("aws_nat_gateway") == 1
    assert not [each for each in types if each.startswith("aws_db_")]
    [cluster] = [each["change"]["after"] for each in small["resource_changes"] if each["type"] == "aws_eks_cluster"]
    assert cluster["vpc_config"][0]["endpoint_public_access"] is False


BAD: Mapping[str, Any] = {
    "account_id": "1234",
    "region": "Frankfurt",
    "zones": ["eu-central-1a", "eu-central-1a", "eu-west-1a"],
    "environment": "prod",
    "name": "Tradeloop!",
    "network_cidr": "8.8.0.0/24",
    "api_cidrs": ["0.0.0.0/0"],
    "administrators": [],
    "operators": ["somebody"],
    "kubernetes_version": "1.20",
    "addon_versions": {"vpc-cmi": "v1"},
    "node_types": [],
    "nodes": {"min": 1, "max": 0},
    "kafka_version": "2.8",
    "kafka_type": "m7g.large",
    "kafka_storage_gb": 1,
    "postgres_version": "9.6",
    "postgres_class": "m7g.large",
    "postgres_storage_gb": {"now": 1, "max": 1},
    "cache_type": "small",
    "passwords_version": 0.5,
    "backup_days": 0,
    "archive_days": 30,
    "ci_repository": "tradeloop",
    "monthly_budget_usd": 0,
    "budget_email": "nobody",
}


def test_variables_are_checked(program: str, ready: Path, attached: str) -> None:
    checked = {name for name, each in named(TERRAFORM, "variable").items() if "validation" in each}
    assert set(BAD) == checked
    refused = set()
    for asked in ({**BAD, "region": "eu-central-1"}, {"region": BAD["region"]}):  # zones are compared with a region
        with pytest.raises(Failed) as failed:
            planned(program, ready, attached, **asked)
        refused |= set(re.findall(r"var\.(\w+)[\w.]* is ", str(failed.value)))
    assert refused >= checked


@pytest.fixture(scope="module")
def plan(program: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A plan in which everything is known, by invention."""
    with providers(SCHEMA, invents=True) as told:
        return planned(program, prepared(program, tmp_path_factory.mktemp("known") / "root", told), told)


def values(plan: Mapping[str, Any], type_: str) -> dict[str, Any]:
    """What is planned of a type, by the rest of its address."""
    resources = plan["planned_values"]["root_module"]["resources"]
    return {each["address"].partition(".")[2]: each["values"] for each in resources if each["type"] == type_}


def documents(plan: Mapping[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """The statements of each policy that is written here, by its name."""
    found = {}
    for each in plan["resource_changes"]:
        if each["type"] == "aws_iam_policy_document":
            found[each["address"].rpartition("aws_iam_policy_document.")[2]] = each["change"]["after"]["statement"]
    for each in plan["prior_state"]["values"]["root_module"]["resources"]:
        if each["type"] == "aws_iam_policy_document":
            found[each["address"].rpartition("aws_iam_policy_document.")[2]] = each["values"]["statement"]
    return found


def arns(plan: Mapping[str, Any], type_: str) -> dict[str, str]:
    return {name: each["arn"] for name, each in values(plan, type_).items()}


def test_each_role_reaches_what_is_its_own(plan: Mapping[str, Any]) -> None:
    reached = {
        name: {each for statement in document for each in statement["resources"]}
        for name, document in documents(plan).items()
        if "trust" not in name
    }
    secret, keys = arns(plan, "aws_secretsmanager_secret")["this"], arns(plan, "aws_kms_key")
    buckets = arns(plan, "aws_s3_bucket")
    assert reached["external_secrets"] == {secret, keys['this["passwords"]']}
    artifacts, backups = buckets['this["artifacts"]'], buckets['this["backups"]']
    assert reached["mlflow"] == {artifacts, f"{artifacts}/*", keys['this["data"]']}
    assert reached["backups"] == {f"{backups}/*", keys['this["data"]']}
    assert reached["ci"] == {"*", *arns(plan, "aws_ecr_repository").values()}
    users = arns(plan, "aws_secretsmanager_secret")
    for user in local("kafka_users"):
        assert reached[f'kafka_user["{user}"]'] == {users[f'kafka_user["{user}"]']}


def test_who_may_take_a_role_is_named(plan: Mapping[str, Any]) -> None:
    trusts = {name: each for name, each in documents(plan).items() if "trust" in name}
    assert len(trusts) == 6
    for name, [statement] in trusts.items():
        [principal] = statement["principals"]
        assert "*" not in principal["identifiers"], name
        said = {each["variable"].rpartition(":")[2]: each["values"] for each in statement["condition"]}
        if principal["type"] == "Federated":
            assert said["aud"] == ["sts.amazonaws.com"], name
            assert said["sub"][0].startswith(("system:serviceaccount:tradeloop:", "repo:example/tradeloop:ref:")), name
        else:
            assert said == {"SourceAccount": ["123456789012"]}, name


def test_no_password_is_in_a_plan(plan: Mapping[str, Any]) -> None:
    text = json.dumps(plan)
    assert "invented" not in text  # what the secret would have said
    kept = re.findall(r"random_password-\d+-result", text)
    assert len(set(kept)) == 1  # the cache's, which docs/terraform.md names
    assert {each["secret_string_wo"] for each in values(plan, "aws_secretsmanager_secret_version").values()} == {None}


def test_everything_is_encrypted_in_three_zones_and_closed(plan: Mapping[str, Any]) -> None:
    [kafka] = values(plan, "aws_msk_cluster").values()
    subnets = {each["id"]: each for each in values(plan, "aws_subnet").values()}
    networks = [ip_network(each["cidr_block"]) for each in subnets.values()]
    assert len(networks) == 9
    assert not [(one, two) for one in networks for two in networks if one is not two and one.overlaps(two)]
    for used in (
        kafka["broker_node_group_info"][0]["client_subnets"],
        values(plan, "aws_db_subnet_group")["this[0]"]["subnet_ids"],
        values(plan, "aws_elasticache_subnet_group")["this"]["subnet_ids"],
        values(plan, "aws_eks_node_group")["this"]["subnet_ids"],
    ):
        assert len({subnets[each]["availability_zone"] for each in used}) == 3
        assert all("-public-" not in subnets[each]["tags"]["Name"] for each in used)
    ways_out = values(plan, "aws_route")
    servers = values(plan, "aws_route_table")["servers"]["id"]
    assert servers not in {each["route_table_id"] for each in ways_out.values()}
    for each in values(plan, "aws_vpc_security_group_ingress_rule").values():
        assert each["referenced_security_group_id"]
        assert each["cidr_ipv4"] is each["cidr_ipv6"] is None
        assert each["from_port"] == each["to_port"]
    [vpc_cni] = [each for each in values(plan, "aws_eks_addon").values() if each["addon_name"] == "vpc-cni"]
    assert json.loads(vpc_cni["configuration_values"]) == {"enableNetworkPolicy": "true"}
    assert "allow.everyone.if.no.acl.found=false" in values(plan, "aws_msk_configuration")["this"]["server_properties"]
