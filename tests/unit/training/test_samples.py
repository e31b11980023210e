"""The model's own texts, from a server that continues a prompt by the prompt's words backwards."""

import pytest

from benchmark.harness.tiny_models import word_tokenizer
from sgl_dynts.training import make_texts
from sgl_dynts.training.samples import main
from tests.unit.training.json_server import JsonServer

PROMPTS = ["w10 w11", "w20 w21 w22", "w30"]


class Server(JsonServer):
    def __init__(self):
        self.asked = []
        self.fails_at = ()
        super().__init__()

    def answer(self, path, body):
        self.asked.append(body)
        if "prompt" in body:
            return 200, {"choices": [{"text": " and so on", "finish_reason": "stop"}]}
        if tuple(body["input_ids"]) in self.fails_at:
            return 400, {"error": "no"}
        finish = {"finish_reason": {"type": "length"}}
        return 200, {"output_ids": body["input_ids"][::-1], "text": "", "meta_info": finish}


@pytest.fixture
def server():
    made = Server()
    yield made
    made.end()


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
