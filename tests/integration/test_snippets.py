"""What runs the snippets of the docs finds what is wrong with them: each page here is wrong in one way."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from tests.servers.base import eventually
from tests.snippets import Room, fences, printed

SERVE = """\
```python title="serve.py"
from http.server import HTTPServer, SimpleHTTPRequestHandler
HTTPServer(("127.0.0.1", 8081), SimpleHTTPRequestHandler).serve_forever()
```
```sh
python serve.py &
sleep 1
curl --silent --fail http://127.0.0.1:8081/serve.py
```
"""


def run(room: Path, page: str) -> None:
    with Room(room) as made:
        made.run(fences(page))


@pytest.mark.parametrize(
    "wrong",
    [
        "```python\nassert 1 == 2\n```",
        "```python\nimport warnings\nwarnings.warn('old', DeprecationWarning)\n```",
        "```python\nfrom meshlib import no_such_name\n```",
        "```sh\nfalse\ntrue\n```",
        "```sh\nno-such-program\n```",
        "```sh\nexit 0\n```",  # a reader's terminal would be closed
        "```sh\nsleep 1\nfalse\n```",
        '```sh\necho tea\n```\n```text title="prints"\nmilk\n```',
        '```sh\nsleep 1\necho tea\n```\n```text title="prints"\nmilk\n```',
        "```python\nprint('tea')\n```\n```text title=\"prints\"\nmilk\n```",
        '```python title="test_it.py"\ndef test_it(): assert False\n```\n```sh\npytest -q test_it.py\n```',
    ],
)  # fmt: skip
def test_what_is_wrong_fails(tmp_path: Path, wrong: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if "sleep" in wrong or "exit" in wrong:
        monkeypatch.setattr("tests.snippets.WITHIN", 1.0)
    with pytest.raises((AssertionError, Warning, ImportError, pytest.fail.Exception)):
        run(tmp_path, wrong)


@pytest.mark.parametrize(
    "right",
    [
        "```python title=\"shop.py\"\nitem = 'tea'\n```\n```python\nfrom shop import item\nprint(item)\n```\n```text title=\"prints\"\nt…a\n```",
        '```sh\nexport A=tea\n```\n```sh\necho $A\n```\n```text title="prints"\ntea\n```',
        "=== a tab\n\n    ```python\n    assert 1 == 1\n    ```\n",
        "```java\nclass {\n```",
        SERVE,
    ],
)  # fmt: skip
def test_what_is_right_passes(tmp_path: Path, right: str) -> None:
    run(tmp_path, right)


def test_pages_know_nothing_of_each_other(tmp_path: Path) -> None:
    for number in (1, 2):
        room = tmp_path / str(number)
        room.mkdir()
        run(room, f'```python title="item.py"\nn = {number}\n```\n```python\nimport item\nassert item.n == {number}\n```')


def test_what_a_page_starts_ends_with_it(tmp_path: Path) -> None:
    with Room(tmp_path) as room:
        room.run(fences(SERVE))
        port = int(room.exchanged("8081"))
        socket.create_connection(("127.0.0.1", port)).close()

    def gone() -> bool:
        try:
            socket.create_connection(("127.0.0.1", port)).close()
        except OSError:
            return True
        return False

    eventually(gone, what="nobody listens any more")


def test_ports_are_exchanged_and_nothing_else(tmp_path: Path) -> None:
    with Room(tmp_path, exchange={"127.0.0.1:8500": "127.0.0.1:1"}) as room:
        port = room.exchanged("8081")
        assert room.exchanged("a:8081/b 18081 80811 1.8081 127.0.0.1:8500") == f"a:{port}/b 18081 80811 1.8081 127.0.0.1:1"


def test_printed() -> None:
    assert printed("a…d\n\ng", "abcd\nefg\n")
    assert not printed("b", "a")
    assert printed("", "anything")
