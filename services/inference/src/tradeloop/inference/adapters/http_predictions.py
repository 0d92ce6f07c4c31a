"""`HttpPredictions`: predictions at `POST /v1/predict`, for who knows the token."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable
from http import HTTPStatus
from threading import BoundedSemaphore, Lock, Thread
from typing import Annotated

from pydantic import AwareDatetime, BaseModel, ConfigDict, FiniteFloat, SecretStr, StringConstraints, ValidationError

from tradeloop.common.clock import Clock
from tradeloop.common.feature_store.port import FeatureStore
from tradeloop.common.market import from_us, iso, to_us
from tradeloop.common.runtime.access import Guard
from tradeloop.common.runtime.counters import Durations
from tradeloop.common.runtime.metrics import Figure
from tradeloop.common.runtime.server import Page, Refused, Request
from tradeloop.inference.application import Inference
from tradeloop.inference.application.predict import NoPrediction, Prediction, Predictor, Question

PATH = "/v1/predict"

STATUSES = {
    "invalid": HTTPStatus.UNPROCESSABLE_ENTITY,
    "unknown_portfolio": HTTPStatus.NOT_FOUND,
    "mismatch": HTTPStatus.CONFLICT,
    "ambiguous": HTTPStatus.CONFLICT,
    "other_bar": HTTPStatus.CONFLICT,
    "no_store": HTTPStatus.CONFLICT,
}
"""The status of each kind of question without an answer; of any other it is 503: ask again later."""
_AGAIN = ("Retry-After", "1")

Text = Annotated[str, StringConstraints(min_length=1, max_length=200)]


class Body(BaseModel):
    """The body of a request."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    portfolio: Text | None = None
    strategy: Text | None = None
    model: Text | None = None
    model_version: Text | None = None
    universe: Text | None = None
    instrument: Text | None = None
    time: AwareDatetime | None = None
    features: dict[str, dict[str, FiniteFloat]] | None = None


class HttpPredictions:
    """Answers over HTTP: a few at once, each within a time, none in the thread that decides.

    It is closed to everybody without a token. Shared between threads.
    """

    def __init__(
        self,
        token: SecretStr | None,
        clock: Clock,
        store: FeatureStore | None = None,
        *,
        at_once: int = 2,
        timeout_s: float = 5.0,
        max_bytes: int = 1 << 20,
        max_age_s: float | None = None,
    ) -> None:
        """`token` may be several, as `access.Tokens`. `store` is for predictions alone: no other thread uses it."""
        self._guard = Guard(token, PATH, "INFERENCE_PREDICT__TOKEN")
        self._clock, self._store = clock, store
        self._timeout_s, self._max_bytes, self._max_age_s = timeout_s, max_bytes, max_age_s
        self._places = BoundedSemaphore(at_once)
        self._reading = Lock()
        self._predictor: Predictor | None = None
        self._counting = Lock()
        self._outcomes: Counter[str] = Counter()
        self._durations = Durations()

    def ask(self, inference: Inference) -> None:
        """Answer from this service from now on."""
        self._predictor = Predictor(inference.books, inference.view, self._clock, self._store, self._max_age_s)

    def answer(self, request: Request) -> Page:
        """As `Door.answer`."""
        begun_s, outcome = self._clock.monotonic(), "failed"
        try:
            self._guard.check(request)
            found = self._answer(request)
            outcome = found.signal.reason if found.signal.hold else "decided"
            return Page(HTTPStatus.OK, "application/json", json.dumps(_content(found)).encode() + b"\n")
        except Refused as refused:
            outcome = refused.kind
            raise
        finally:
            self._count(outcome, self._clock.monotonic() - begun_s)

    def figures(self) -> Iterable[Figure]:
        """As `CountedDoor.figures`."""
        with self._counting:
            outcomes = dict(self._outcomes)
        for outcome, count in outcomes.items():
            yield Figure("tradeloop_predictions_total", count, (outcome,))
        yield Figure("tradeloop_prediction_seconds", self._durations)

    def close(self) -> None:
        """Release the connections of the store."""
        if self._store is not None:
            self._store.close()

    def _answer(self, request: Request) -> Prediction:
        if request.headers.get_content_type() != "application/json":
            text = "the body is to be JSON, with Content-Type: application/json"
            raise Refused(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "wrong_type", text)
        if not self._places.acquire(blocking=False):
            raise Refused(HTTPStatus.SERVICE_UNAVAILABLE, "busy", "too many are asked for at once: ask again", _AGAIN)
        end_s = self._clock.monotonic() + self._timeout_s
        try:
            question = _question(request.read(self._max_bytes, self._timeout_s))
            # It may wait for the store, and nothing can end that: its place is taken until it has come back.
            asked = _Asked(self._predict, question, self._places.release)
            asked.start()
        except BaseException:
            self._places.release()
            raise
        asked.join(max(end_s - self._clock.monotonic(), 0.0))
        if asked.is_alive():
            text = f"no answer within {self._timeout_s:g} s"
            raise Refused(HTTPStatus.GATEWAY_TIMEOUT, "timeout", text, _AGAIN)
        return asked.result()

    def _predict(self, question: Question) -> Prediction:
        predictor = self._predictor
        if predictor is None:
            raise Refused(HTTPStatus.SERVICE_UNAVAILABLE, "not_ready", "the service has not started yet", _AGAIN)
        try:
            if question.features is not None:
                return predictor.answer(question)
            with self._reading:  # the store belongs to one thread at a time
                return predictor.answer(question)
        except NoPrediction as none:
            status = STATUSES.get(none.kind, HTTPStatus.SERVICE_UNAVAILABLE)
            again = (_AGAIN,) if status is HTTPStatus.SERVICE_UNAVAILABLE else ()
            raise Refused(status, none.kind, str(none), *again) from None

    def _count(self, outcome: str, seconds: float) -> None:
        with self._counting:
            self._outcomes[outcome] += 1
            self._durations.took(seconds)


class _Asked(Thread):
    """An answer in the making. It ends by itself; nobody has to wait for it."""

    def __init__(self, predict: Callable[[Question], Prediction], question: Question, done: Callable[[], None]) -> None:
        super().__init__(name="prediction", daemon=True)
        self._predict, self._question, self._done = predict, question, done
        self._found: Prediction | Exception | None = None

    def run(self) -> None:
        try:
            self._found = self._predict(self._question)
        except Exception as error:  # noqa: BLE001  raised again by `result`
            self._found = error
        finally:
            self._done()

    def result(self) -> Prediction:
        """The answer, once the thread has ended. Raises what stood in its way."""
        if isinstance(self._found, Prediction):
            return self._found
        raise self._found or RuntimeError("the thread of a prediction ended without an answer")


def _question(body: bytes) -> Question:
    try:
        asked = Body.model_validate_json(body)
    except ValidationError as error:
        wrong = error.errors(include_url=False, include_input=False, include_context=False)
        first, more = wrong[0], f" (and {len(wrong) - 1} more)" if len(wrong) > 1 else ""
        if first["type"] == "json_invalid":
            raise Refused(HTTPStatus.BAD_REQUEST, "malformed", f"the body is no JSON: {first['msg']}") from None
        place = ".".join(map(str, first["loc"]))[:200] or "the body"
        text = f"{place}: {first['msg']}{more}"
        raise Refused(HTTPStatus.UNPROCESSABLE_ENTITY, "invalid", text) from None
    return Question(
        **asked.model_dump(exclude={"time", "features"}),
        time_us=None if asked.time is None else to_us(asked.time),
        features=asked.features,
    )


def _content(found: Prediction) -> dict[str, object]:
    signal = found.signal
    model = {"name": signal.model, "version": signal.model_version, "id": signal.model_id} if signal.model_id else None
    return {
        "portfolio": found.portfolio.name,
        "strategy": found.portfolio.strategy,
        "universe": found.portfolio.universe.name,
        "decision": {
            "targets": dict(zip(signal.instruments, signal.targets, strict=True)),
            "action": list(signal.action),
            "hold": signal.hold,
            "reason": signal.reason,
            "error": signal.error,
        },
        "model": model,
        "feature_set": signal.feature_set,
        "features": {
            "source": found.source,
            "time": iso(from_us(found.time_us)),
            "age_s": round(found.age_s, 3),
        },
        "book": {"time": iso(signal.time)},
        "trace_id": found.trace_id,
    }
