"""The model's own texts, from a server that continues a prompt by the prompt's words backwards."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from benchmark.harness.tiny_models import word_tokenizer
from sgl_dynts.training import make_texts
from sgl_dynts.training.samples import main

PROMPTS = ["w10 w11", "w20 w21 w22", "w30"]


class Server(ThreadingHTTPServer):
    def __init__(self):
        self.asked = []
        self.fails_at = ()
        super().__init__(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_address[1]}"


class Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        assert isinstance(self.server, Server)
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.asked.append(body)
        status, reply = 400, {"error": "no"}
        if "input_ids" in body and tuple(body["input_ids"]) not in self.server.fails_at:
            finish = {"finish_reason": {"type": "length"}}
            status, reply = 200, {"output_ids": body["input_ids"][::-1], "text": "", "meta_info": finish}
        if "prompt" in body:
            status, reply = 200, {"choices": [{"text": " and so on", "finish_reason": "stop"}]}
        data = json.dumps(reply).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format, *args):
        pass


@pytest.fixture
def server():
    made = Server()
    yield made
    made.shutdown()
    made.server_close()


@pytest.fixture
def folder(tmp_path):
    word_tokenizer(64).save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def test_a_prompt_and_its_continuation_are_a_text_and_what_is_there_is_not_asked_again(
    server, folder, tmp_path, capsys
):
    (tmp_path / "prompts.txt").write_text("\n".join([*PROMPTS, ""]))
    words = ["--url", server.url, "--model", str(folder), "--prompts", str(tmp_path / "prompts.txt")]
    words += ["--out", str(tmp_path / "texts"), "--max-new-tokens", "7"]
    assert main(words) == 0
    files = sorted((tmp_path / "texts").iterdir())
    assert [file.name for file in files] == ["00000.txt", "00001.txt", "00002.txt"]
    assert files[1].read_text() == "w20 w21 w22 w22 w21 w20"
    assert "3 texts in" in capsys.readouterr().out
    (body,) = [body for body in server.asked if body["input_ids"] == [30]]
    assert body["sampling_params"]["max_new_tokens"] == 7
    assert body["sampling_params"]["custom_params"] == {"dynts": {"enabled": False}}
    files[0].unlink()
    assert main(words) == 0
    assert len(server.asked) == 4
    assert files[0].read_text() == "w10 w11 w11 w10"


def test_a_server_that_refuses_leaves_what_was_done(server, folder, tmp_path, capsys):
    server.fails_at = ((30,),)
    (tmp_path / "prompts.txt").write_text("\n".join(PROMPTS))
    words = ["--url", server.url, "--model", str(folder), "--prompts", str(tmp_path / "prompts.txt")]
    assert main([*words, "--out", str(tmp_path / "texts"), "--concurrency", "1"]) == 1
    assert "refused a request" in capsys.readouterr().err
    assert {file.name for file in (tmp_path / "texts").iterdir()} == {"00000.txt", "00001.txt"}


def test_a_server_that_gives_text_alone_will_do(server, folder, tmp_path):
    (file,) = make_texts(server.url, folder, ["w10 w11"], tmp_path / "texts", api="openai-text")
    assert file.read_text() == "w10 w11 and so on"


def test_what_cannot_be_continued_is_refused(server, folder, tmp_path):
    with pytest.raises(ValueError, match="prompts: there is none; give texts to continue"):
        make_texts(server.url, folder, [], tmp_path / "texts")
    with pytest.raises(ValueError, match="its tokenizer has no chat template; leave --chat out"):
        make_texts(server.url, folder, ["w10"], tmp_path / "texts", chat=True)
