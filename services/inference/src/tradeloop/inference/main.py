"""Composition root of the inference service."""

from __future__ import annotations

from tradeloop.common.models import ModelStore
from tradeloop.common.onnx_policy import OnnxPolicy
from tradeloop.common.strategy import load
from tradeloop.inference.application import Inference
from tradeloop.inference.config import Settings


def build(settings: Settings, models: ModelStore | None = None) -> Inference:
    """The service; `models` stands in for the MLflow registry that the settings name."""
    if models is None:
        from tradeloop.common.mlflow_models import MlflowModelStore

        models = MlflowModelStore(settings.mlflow_tracking_uri)
    return Inference(settings.portfolios, load, models, OnnxPolicy)


def main() -> None:
    """Run against Kafka until SIGTERM."""
    from tradeloop.common.clock import SystemClock
    from tradeloop.common.kafka import KafkaBus, KafkaSettings
    from tradeloop.common.service import Runner, serve

    settings = Settings()
    serve(Runner(build(settings), KafkaBus(KafkaSettings()), SystemClock()))


if __name__ == "__main__":
    main()
