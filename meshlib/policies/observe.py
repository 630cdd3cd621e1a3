"""Count every call: how it ended, how long it took, and how often it was sent again."""

from __future__ import annotations

from typing import Final

from meshlib.flow import Call, Flow, Next
from meshlib.metrics.client import KNOWN, error_of, verb_of
from meshlib.metrics.recorder import FULL, Recorder, Series
from meshlib.policies.base import Site

MOST: Final = 256
"""Series that one layer has at hand; it looks others up."""


class Observe:
    """The outermost layer. A call ends here when its answer has come: with its body, where that is read within the attempt,
    else when its head has. What the layers below refuse is counted, too."""

    def __init__(self, site: Site, recorder: Recorder) -> None:
        self._site, self._recorder, self._clock = site, recorder, site.clock
        self._plain: dict[tuple[str, int], Series] = {}

    def __call__(self, call: Call, proceed: Next) -> Flow:
        again = call.again = []  # nobody else has seen the call yet
        begun = self._clock()
        try:
            response = yield from proceed(call)
        except BaseException as problem:
            self._series(call.method, 0, error_of(problem), len(again)).add(self._clock() - begun)
            raise
        series = self._plain.get((call.method, response.status_code)) if not again else None
        if series is None:
            series = self._answered(call.method, response.status_code, len(again))
        samples = series.samples
        samples.append(self._clock() - begun)
        if len(samples) >= FULL:
            series.fold()
        return response

    def _answered(self, verb: str, status: int, again: int) -> Series:
        series = self._series(verb, status, str(status) if status >= 400 else "", again)
        if not again and len(self._plain) < MOST:
            self._plain[verb, status] = series
        return series

    def _series(self, verb: str, status: int, error: str, again: int) -> Series:
        site = self._site
        return self._recorder.series(
            (site.service, site.method, verb_of(verb), site.template, str(status or ""), error, str(min(again, KNOWN)))
        )
