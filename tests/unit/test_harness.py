"""A server that is started, awaited, asked and ended; one that fails says why."""

import socket
from pathlib import Path

import pytest

from sgl_dynts.harness import server
from sgl_dynts.harness.client import Client
from sgl_dynts.harness.server import Server, ServerError, running

STAND_IN = Path(__file__).parent / "stand_in"


@pytest.fixture(autouse=True)
def stand_in(monkeypatch):
    """Processes that are started find it before the real SGLang."""
    monkeypatch.setenv("PYTHONPATH", str(STAND_IN))


def test_a_machine_without_a_home_folder_is_told_before_anything_starts(monkeypatch, tmp_path):
    monkeypatch.delenv("HOME")
    monkeypatch.delenv(server.CACHES, raising=False)
    monkeypatch.setattr(server.os.path, "expanduser", lambda path: path)
    with pytest.raises(
        ServerError, match=r"^HOME is not set, .* set HOME to one that this user can write$"
    ):
        Server([], tmp_path / "log")
    with running([], tmp_path / "log", {"HOME": str(tmp_path)}, seconds=60) as client:
        assert client.is_up()


def test_a_server_is_ended_with_its_block(tmp_path):
    with running([], tmp_path / "log", {}, seconds=60) as client:
        assert client.is_up()
        assert client.call("/flush_cache", {}) == "Cache flushed."
    assert not client.is_up()


def test_a_server_that_ends_instead_of_starting_gives_its_log(tmp_path):
    with (
        pytest.raises(ServerError, match=r"(?s)ended with 1; .*log:.*refused by its flags"),
        running(["--refuse"], tmp_path / "log", {}, seconds=60),
    ):
        pytest.fail("it started")


def test_a_server_that_dies_of_a_request_gives_its_log(tmp_path):
    with (
        pytest.raises(ServerError, match=r"(?s)the server ended with 7; .*log:.*out of luck"),
        running([], tmp_path / "log", {}, seconds=60) as client,
    ):
        client.call("/die", {})


def test_a_server_that_drops_a_request_and_lives_is_told_from_one_that_dies(tmp_path, monkeypatch):
    monkeypatch.setattr(server, "SECONDS_TO_TELL_ITS_FATE", 0.1)
    with (
        pytest.raises(ServerError, match="without response: the server still runs"),
        running([], tmp_path / "log", {}, seconds=60) as client,
    ):
        client.call("/drop", {})


def test_a_server_that_never_answers_is_given_up(tmp_path, monkeypatch):
    monkeypatch.setattr(Client, "is_up", lambda _client: False)
    with (
        pytest.raises(ServerError, match="did not answer within 0 s"),
        running([], tmp_path / "log", {}, seconds=0),
    ):
        pytest.fail("it started")


def test_who_waits_gets_signs_of_life_and_the_group_ends_with_the_process(tmp_path, monkeypatch):
    monkeypatch.setattr(server, "SECONDS_BETWEEN_SIGNS", 0.0)
    signs: list[str] = []
    with Server([], tmp_path / "log") as one:
        one.wait(60, say=signs.append)
        assert one.client.is_up()
    assert signs
    assert signs[0].startswith("starting ... ")
    assert one.process.poll() is not None
    assert not one.client.is_up()


def test_a_free_port_is_none_that_the_system_gives_to_connections(monkeypatch, tmp_path):
    given = tmp_path / "range"
    monkeypatch.setattr(server, "GIVEN_PORTS", given)
    for text, end in (("10003\t60999\n", 10_003), ("1024 65535\n", 32_768), ("", 32_768)):
        given.write_text(text)
        assert server.LOWEST_PORT <= server.free_port() < end
    given.unlink()
    assert server.free_port() < 32_768


def test_a_port_that_is_taken_is_not_free(monkeypatch, tmp_path):
    given = tmp_path / "range"
    monkeypatch.setattr(server, "GIVEN_PORTS", given)
    lowest = server.free_port()
    monkeypatch.setattr(server, "LOWEST_PORT", lowest)
    given.write_text(f"{lowest + 1} 60999\n")
    with socket.socket() as taken:
        assert server.free_port() == lowest
        taken.bind((server.HOST, lowest))
        with pytest.raises(ServerError, match=f"from {lowest} to {lowest} is free; name one"):
            server.free_port()
