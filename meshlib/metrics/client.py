"""The consumer's families: what is counted of calls, by the names of OpenTelemetry's conventions."""

from __future__ import annotations

from collections import Counter, defaultdict
from typing import Final

from meshlib.metrics.families import Distribution, Family, Sample, labelled
from meshlib.metrics.recorder import BOUNDS, OTHER, Labels, Recorder, Series

VERBS: Final = frozenset({"CONNECT", "DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT", "QUERY", "TRACE"})
KNOWN: Final = 5
"""Times that a call was sent again, beyond which it is not told how often."""

LABELS: Final = (
    "service.peer.name", "meshlib.method", "http.request.method", "url.template", "http.response.status_code", "error.type",
    "http.request.resend_count",
)  # fmt: skip


def recorder() -> Recorder:
    """One for calls."""
    return Recorder(len(LABELS))


def verb_of(method: str) -> str:
    """``method`` as it is counted: those that anybody may think up are one."""
    return method if method in VERBS else "_OTHER"


def error_of(problem: BaseException) -> str:
    """What kind of error it is: the name of its class."""
    return type(problem).__name__


def families(recorder: Recorder) -> tuple[Family, ...]:
    """How long calls took; and how they ended, after how many repetitions."""
    return _durations(recorder), _calls(recorder)


def _durations(recorder: Recorder) -> Family:
    alike: defaultdict[Labels, list[Series]] = defaultdict(list)
    for labels, series in recorder:
        alike[labels[:-1]].append(series)
    samples = tuple(Sample(labelled(LABELS[:-1], labels), merged(each)) for labels, each in alike.items())
    return Family("http.client.request.duration", "histogram", "Duration of calls, attempts and pauses included.", "s", samples)


def _calls(recorder: Recorder) -> Family:
    counts: Counter[Labels] = Counter()
    for labels, series in recorder:
        service, method, verb, template, status, error, again = labels
        counts[service, method, verb, template, _outcome(service, status, error), again] += series.read()[1]
    names = (*LABELS[:4], "outcome", LABELS[-1])
    samples = tuple(Sample(labelled(names, labels), count) for labels, count in counts.items())
    return Family("meshlib.client.calls", "counter", "Calls by how they ended, and how often they were sent again.",
                  samples=samples)  # fmt: skip


def _outcome(service: str, status: str, error: str) -> str:
    if service == OTHER and not status and not error:
        return OTHER
    return f"{status[0]}xx" if status else error


def merged(series: list[Series]) -> Distribution:
    """What several series have counted together."""
    reads = [each.read() for each in series]
    counts = [sum(column) for column in zip(*(counts for counts, _, _ in reads), strict=True)]
    return Distribution(tuple(zip(BOUNDS, counts, strict=True)), sum(total for _, total, _ in reads),
                        sum(seconds for _, _, seconds in reads))  # fmt: skip
