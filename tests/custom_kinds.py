"""JSON Schemas of the custom kinds of deploy/k8s, as far as they are used there: nothing else may be said.

A shape is a type, a tuple of allowed values, a list with the shape of its items, a mapping of names to shapes (`name?`
may be missing), or a mapping with `*`, whose names are free.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Shape = Any
Object = Mapping[str, Any]

_TYPES = {str: "string", int: "integer", bool: "boolean"}
_LABELS: Shape = {"*": str}
_SELECTOR: Shape = {"matchLabels": _LABELS}
_RESOURCES: Shape = {"requests": {"cpu": str, "memory": str}, "limits": {"cpu": str, "memory": str}}
_KEY: Shape = {"name": str, "key": str}
_BEHAVIOUR: Shape = {
    "scaleUp": {
        "stabilizationWindowSeconds": int,
        "policies": [{"type": ("Pods",), "value": int, "periodSeconds": int}],
    },
    "scaleDown": {
        "stabilizationWindowSeconds": int,
        "policies": [{"type": ("Pods",), "value": int, "periodSeconds": int}],
    },
}

SPECS: Mapping[tuple[str, str], Shape] = {
    ("kafka.strimzi.io/v1", "KafkaNodePool"): {
        "replicas": int,
        "roles": [("controller", "broker")],
        "storage": {"type": ("persistent-claim",), "size": str, "deleteClaim": bool},
        "resources": _RESOURCES,
        "jvmOptions": {"-Xms": str, "-Xmx": str},
    },
    ("kafka.strimzi.io/v1", "Kafka"): {
        "kafka": {
            "version": str,
            "metadataVersion": str,
            "listeners": [
                {
                    "name": str,
                    "port": int,
                    "type": ("internal",),
                    "tls": bool,
                    "authentication": {"type": ("scram-sha-512", "tls")},
                    "networkPolicyPeers": [{"podSelector": _SELECTOR}],
                }
            ],
            "authorization": {"type": ("simple",), "superUsers": [str]},
            "config": {"*": (str, int, bool)},
            "template": {
                "pod": {
                    "topologySpreadConstraints": [
                        {
                            "maxSkew": int,
                            "topologyKey": str,
                            "whenUnsatisfiable": ("ScheduleAnyway", "DoNotSchedule"),
                            "labelSelector": _SELECTOR,
                        }
                    ]
                }
            },
        },
        "entityOperator": {
            "topicOperator": {"resources": _RESOURCES},
            "userOperator": {"secretPrefix": str, "resources": _RESOURCES},
        },
    },
    ("kafka.strimzi.io/v1", "KafkaTopic"): {
        "topicName": str,
        "partitions": int,
        "replicas": int,
        "config": {"*": str},
    },
    ("kafka.strimzi.io/v1", "KafkaUser"): {
        "authentication": {"type": ("scram-sha-512",), "password": {"valueFrom": {"secretKeyRef": _KEY}}},
        "authorization?": {
            "type": ("simple",),
            "acls": [
                {
                    "resource": {"type": ("topic", "group"), "name": str, "patternType": ("literal",)},
                    "operations": [("Read", "Write", "Describe")],
                }
            ],
        },
    },
    ("postgresql.cnpg.io/v1", "Cluster"): {
        "instances": int,
        "imageName": str,
        "bootstrap": {
            "initdb": {
                "database": str,
                "owner": str,
                "secret": {"name": str},
                "postInitTemplateSQL": [str],
                "postInitApplicationSQL": [str],
            }
        },
        "managed": {
            "roles": [
                {"name": str, "login": bool, "createdb": bool, "createrole": bool, "passwordSecret": {"name": str}}
            ],
            "services": {
                "additional": [
                    {
                        "selectorType": ("rw", "ro", "r"),
                        "serviceTemplate": {"metadata": {"name": str}, "spec": {"type": ("ClusterIP",)}},
                    }
                ]
            },
        },
        "postgresql": {
            "shared_preload_libraries": [str],
            "parameters": {"*": str},
            "synchronous?": {"method": ("any", "first"), "number": int},
        },
        "storage": {"size": str},
        "walStorage": {"size": str},
        "resources": _RESOURCES,
        "affinity": {"podAntiAffinityType": ("preferred", "required"), "topologyKey": str},
        "backup": {"volumeSnapshot": {"online": bool}},
    },
    ("postgresql.cnpg.io/v1", "ScheduledBackup"): {
        "cluster": {"name": str},
        "schedule": str,
        "method": ("volumeSnapshot", "plugin", "barmanObjectStore"),
        "backupOwnerReference": ("none", "self", "cluster"),
    },
    ("monitoring.coreos.com/v1", "ServiceMonitor"): {
        "selector": _SELECTOR,
        "endpoints": [{"port": str, "path": str, "interval": str, "scrapeTimeout": str}],
    },
    ("monitoring.coreos.com/v1", "PrometheusRule"): {
        "groups": [
            {
                "name": str,
                "rules": [
                    {
                        "alert?": str,
                        "record?": str,
                        "expr": str,
                        "for?": str,
                        "labels?": _LABELS,
                        "annotations?": _LABELS,
                    }
                ],
            }
        ]
    },
    ("keda.sh/v1alpha1", "TriggerAuthentication"): {
        "env": [{"parameter": str, "name": str, "containerName": str}],
        "secretTargetRef?": [{"parameter": str, "name": str, "key": str}],
    },
    ("keda.sh/v1alpha1", "ScaledObject"): {
        "scaleTargetRef": {
            "apiVersion": ("apps/v1",),
            "kind": ("StatefulSet",),
            "name": str,
            "envSourceContainerName": str,
        },
        "minReplicaCount": int,
        "maxReplicaCount": int,
        "pollingInterval": int,
        "cooldownPeriod": int,
        "advanced": {"horizontalPodAutoscalerConfig": {"behavior": _BEHAVIOUR}},
        "triggers": [
            {
                "type": ("kafka",),
                "metadata": {
                    "bootstrapServersFromEnv": str,
                    "consumerGroup": str,
                    "topic": str,
                    "lagThreshold": str,
                    "offsetResetPolicy": ("earliest", "latest"),
                    "sasl": ("scram_sha512",),
                    "tls": ("enable", "disable"),
                },
                "authenticationRef": {"name": str},
            }
        ],
    },
    ("gateway.networking.k8s.io/v1", "Gateway"): {
        "gatewayClassName": str,
        "listeners": [
            {
                "name": str,
                "port": int,
                "protocol": ("HTTP", "HTTPS"),
                "tls?": {"mode": ("Terminate",), "certificateRefs": [{"name": str}]},
                "allowedRoutes": {"namespaces": {"from": ("Same", "All", "Selector")}},
            }
        ],
    },
    ("gateway.networking.k8s.io/v1", "HTTPRoute"): {
        "parentRefs": [{"name": str, "sectionName": str}],
        "hostnames?": [str],
        "rules": [
            {
                "filters?": [
                    {
                        "type": ("RequestRedirect",),
                        "requestRedirect": {"scheme": ("https",), "statusCode": int},
                    }
                ],
                "matches?": [{"path": {"type": ("Exact", "PathPrefix"), "value": str}, "method": ("GET", "POST")}],
                "backendRefs?": [{"name": str, "port": int}],
            }
        ],
    },
    ("external-secrets.io/v1", "ExternalSecret"): {
        "refreshInterval": str,
        "secretStoreRef": {"kind": ("SecretStore", "ClusterSecretStore"), "name": str},
        "target": {"name": str, "template": {"engineVersion": ("v2",), "type?": str, "data": {"*": str}}},
        "data": [{"secretKey": str, "remoteRef": {"key": str, "property": str}}],
    },
    ("external-secrets.io/v1", "SecretStore"): {
        "provider": {
            "aws?": {
                "service": ("SecretsManager",),
                "region": str,
                "auth": {"jwt": {"serviceAccountRef": {"name": str}}},
            },
            "vault?": {
                "server": str,
                "path": str,
                "version": ("v2",),
                "auth": {
                    "kubernetes": {"mountPath": str, "role": str, "serviceAccountRef": {"name": str}},
                },
            },
        }
    },
}


def schema(shape: Shape) -> Object:
    """The JSON Schema of a shape."""
    if isinstance(shape, type):
        return {"type": _TYPES[shape]}
    if isinstance(shape, tuple):
        kinds = [schema(each) for each in shape if isinstance(each, type)]
        return {"anyOf": kinds} if kinds else {"enum": list(shape)}
    if isinstance(shape, list):
        return {"type": "array", "items": schema(shape[0]), "minItems": 1}
    if set(shape) == {"*"}:
        return {"type": "object", "additionalProperties": schema(shape["*"])}
    return {
        "type": "object",
        "properties": {name.rstrip("?"): schema(each) for name, each in shape.items()},
        "required": [name for name in shape if not name.endswith("?")],
        "additionalProperties": False,
    }


def schema_of(api: str, kind: str) -> Object:
    """The JSON Schema of a whole object of a custom kind. Raises `KeyError` for one that is not in use."""
    return schema(
        {
            "apiVersion": (api,),
            "kind": (kind,),
            "metadata": {"name": str, "namespace": str, "labels?": _LABELS, "annotations?": _LABELS},
            "spec": SPECS[api, kind],
        }
    )
