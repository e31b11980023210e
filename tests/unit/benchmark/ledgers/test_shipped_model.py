"""The shipped folder is a Hugging Face model that solves ledgers."""

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from benchmark.ledgers import evaluate
from benchmark.ledgers.export import load_model_folder
from sgl_dynts.checkpoint import find_predictor, load_predictor
from sgl_dynts.demo import ledger

FOLDER = evaluate.SHIPPED_MODEL
PROBLEMS = evaluate.problems_of("test", 4, ledger.DEFAULT_STEPS)


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(FOLDER)


@pytest.fixture(scope="module")
def hugging_face_model():
    return AutoModelForCausalLM.from_pretrained(FOLDER, dtype=torch.float32).eval()


def test_hugging_face_generate_writes_the_reference_solution(tokenizer, hugging_face_model) -> None:
    problems = PROBLEMS[:2]
    prompts = tokenizer([problem.prompt for problem in problems], return_tensors="pt")
    output = hugging_face_model.generate(
        **prompts, max_new_tokens=700, do_sample=False, pad_token_id=tokenizer.pad_token_id
    )
    texts = tokenizer.batch_decode(output[:, prompts.input_ids.shape[1] :], skip_special_tokens=True)
    assert all(ledger.is_correct(*pair) for pair in zip(problems, texts, strict=True))
    assert all(ledger.END_THINK in text for text in texts)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_trained_module_computes_what_hugging_face_computes(tokenizer, dtype) -> None:
    own = load_model_folder(FOLDER, dtype)
    other = AutoModelForCausalLM.from_pretrained(FOLDER, dtype=dtype).eval()
    tokens = tokenizer(f"{PROBLEMS[0].prompt} {PROBLEMS[0].completion}", return_tensors="pt")
    with torch.inference_mode():
        difference = own(tokens.input_ids) - other(tokens.input_ids).logits
    assert difference.abs().max() <= (1e-3 if dtype is torch.float32 else 0.5)


def test_training_and_tokenizer_agree_on_token_ids(tokenizer) -> None:
    text = f"{PROBLEMS[0].prompt} {PROBLEMS[0].completion}"
    ids = ledger.Vocabulary().encode(text)
    assert tokenizer(text).input_ids == ids
    assert tokenizer.decode(ids) == text


def test_chat_template_and_plain_prompt_are_the_same_tokens(tokenizer) -> None:
    chat = [{"role": "user", "content": PROBLEMS[0].question}]
    text = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    assert text == PROBLEMS[0].prompt
    ids = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=False)
    assert list(ids) == tokenizer(text).input_ids
    assert list(ids).count(tokenizer.bos_token_id) == 1


def test_decoding_hides_special_words_but_not_the_thinking_markers(tokenizer) -> None:
    ids = tokenizer("<bos> a <think> b=3 ; </think> c=4 <eos>").input_ids
    assert tokenizer.decode(ids, skip_special_tokens=True) == "a <think> b=3 ; </think> c=4"


def test_a_word_outside_the_vocabulary_is_unknown(tokenizer) -> None:
    assert tokenizer("a zebra").input_ids == [tokenizer("a").input_ids[0], tokenizer.unk_token_id]


def test_the_shape_suits_paged_attention_and_two_ranks(hugging_face_model) -> None:
    config = hugging_face_model.config
    assert config.head_dim == 64
    assert config.num_attention_heads > config.num_key_value_heads
    assert config.num_key_value_heads % 2 == config.num_attention_heads % 2 == 0


def test_the_predictor_fits_the_model_and_names_a_budget_below_half_the_trace() -> None:
    source = find_predictor(FOLDER)
    trace_len = len(PROBLEMS[0].trace.split())
    assert load_predictor(source).hidden_size == load_model_folder(FOLDER).shape.hidden_size
    assert source.header.windows.budget <= trace_len / 2


def test_the_predictor_beats_recent_tokens_on_a_few_problems() -> None:
    source = find_predictor(FOLDER)
    run = evaluate.Evaluation(
        load_model_folder(FOLDER), PROBLEMS, source.header.windows, load_predictor(source)
    ).run
    assert run("full").correct == 4
    assert run("dynts").correct > run("window").correct


def test_ledgers_with_words_that_the_model_lacks_are_refused() -> None:
    with pytest.raises(SystemExit, match=f"num_steps is 24, .*choose at most {ledger.MAX_STEPS}"):
        evaluate.main(["--num-steps", "24", "--num-problems", "1"])


def test_the_folder_is_a_few_megabytes() -> None:
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) < 4_000_000
