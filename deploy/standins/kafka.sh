#!/bin/bash
# Turns the KAFKA_* variables into a configuration, by the official image's own class, formats a new volume and starts.
set -euo pipefail

java=(java -cp '/opt/kafka/libs/*')
setup=(setup --default-configs-dir /etc/kafka/docker --mounted-configs-dir /mnt/shared/config --final-configs-dir /opt/kafka/config)
said=$("${java[@]}" -Xmx256m kafka.docker.KafkaDockerWrapper "${setup[@]}" 2>&1) ||
    grep -qi 'already formatted' <<<"$said" || { echo "$said" >&2; exit 1; }
# shellcheck disable=SC2086  several options in one variable, as the official image has it
exec "${java[@]}" ${KAFKA_HEAP_OPTS:-} kafka.Kafka /opt/kafka/config/server.properties
