"""rollout/mask_predictor: what is bidirectional, what is refused, the logit shift, padding, loading."""

from __future__ import annotations

import pytest
import torch
from remote_double import remote_checkpoint
from torch.testing import assert_close
from transformers import (
    AutoModelForCausalLM,
    BertConfig,
    BertForMaskedLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from posttrain.rollout.masked.predictor import (
    MaskPredictor,
    check_mask_predictor,
    load_mask_model,
    mask_id_of,
    scratch_mask_model,
)

SIZES = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}


def decoder(kind, causal):
    if kind == "gpt2":
        config, cls = (
            GPT2Config(vocab_size=20, n_embd=16, n_layer=2, n_head=2, n_positions=32),
            GPT2LMHeadModel,
        )
    else:
        config_class, cls = {
            "llama": (LlamaConfig, LlamaForCausalLM),
            "qwen2": (Qwen2Config, Qwen2ForCausalLM),
        }[kind]
        config = config_class(vocab_size=20, num_key_value_heads=2, max_position_embeddings=32, **SIZES)
    config.is_causal = causal
    torch.manual_seed(0)
    return cls(config).eval()


@pytest.mark.parametrize("kind", ["llama", "qwen2", "gpt2"])
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_decoders_see_both_ways_and_hide_padding(kind, attention):
    model = decoder(kind, causal=False)
    model.set_attn_implementation(attention)
    assert check_mask_predictor(MaskPredictor.of(model, 19)) == "hidden"


@pytest.mark.parametrize("kind", ["llama", "qwen2", "gpt2"])
def test_a_causal_decoder_is_refused(kind):
    with pytest.raises(ValueError, match="attends to the left only"):
        check_mask_predictor(MaskPredictor.of(decoder(kind, causal=True), 19))


def test_an_encoder_serves_too(tmp_path):
    torch.manual_seed(0)
    BertForMaskedLM(BertConfig(vocab_size=20, max_position_embeddings=32, **SIZES)).save_pretrained(tmp_path)
    model = load_mask_model(str(tmp_path))
    assert isinstance(model, BertForMaskedLM)
    assert model.generation_config is not None
    assert check_mask_predictor(MaskPredictor.of(model, 19)) == "hidden"


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_log_probs_do_not_depend_on_how_far_a_row_is_padded(kind):
    predictor = MaskPredictor.of(decoder(kind, causal=False), 19)
    ids = torch.tensor([[3, 4, 5, 6]])
    plain = predictor.logits(ids, torch.ones_like(ids))
    wide = torch.nn.functional.pad(ids, (5, 0))
    present = torch.nn.functional.pad(torch.ones_like(ids), (5, 0))
    assert_close(predictor.logits(wide, present)[:, 5:], plain, rtol=1e-4, atol=1e-5)


def test_the_shift_moves_every_row_one_to_the_right():
    model = decoder("llama", causal=False)
    ids = torch.arange(6).unsqueeze(0)
    plain = MaskPredictor(model, 19).logits(ids, torch.ones_like(ids))
    shifted = MaskPredictor(model, 19, logit_shift=True).logits(ids, torch.ones_like(ids))
    assert_close(shifted[:, 1:], plain[:, :-1])
    assert_close(shifted[:, 0], plain[:, 0])


def test_a_causal_checkpoint_is_turned_round_and_stays_so_when_saved(tmp_path):
    decoder("llama", causal=True).save_pretrained(tmp_path / "causal")
    model = load_mask_model(str(tmp_path / "causal"), logit_shift=True)
    check_mask_predictor(MaskPredictor.of(model, 19))
    model.save_pretrained(tmp_path / "turned")
    again = load_mask_model(str(tmp_path / "turned"))
    assert MaskPredictor.of(again, 19).logit_shift
    # also where another program loads it without this module
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "turned")
    assert check_mask_predictor(MaskPredictor.of(plain, 19)) == "hidden"


def test_mask_id_comes_from_the_tokenizer(tokenizer):
    assert mask_id_of(tokenizer) == tokenizer.mask_token_id
    other = type(tokenizer)(tokenizer_object=tokenizer.backend_tokenizer, pad_token="<pad>")
    with pytest.raises(ValueError, match="names no mask token"):
        mask_id_of(other)
    with pytest.raises(ValueError, match="not in the tokenizer's vocabulary"):
        mask_id_of(other, "<|mdm_mask|>")
    assert mask_id_of(other, "<mask>") == tokenizer.mask_token_id


def test_scratch_model_is_bidirectional_and_leaves_the_random_state(tokenizer):
    before = torch.get_rng_state()
    model = scratch_mask_model(tokenizer, hidden_size=16, heads=2)
    assert torch.equal(torch.get_rng_state(), before)
    assert check_mask_predictor(MaskPredictor.of(model, tokenizer.mask_token_id)) == "hidden"


# Remote code


@pytest.fixture
def modules_cache(tmp_path, monkeypatch):
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))


def test_remote_code_is_run_only_when_asked_for(tmp_path, modules_cache):
    folder = tmp_path / "llada_double"
    folder.mkdir()
    remote_checkpoint(folder, "llada")
    with pytest.raises(ValueError, match="trust_remote_code: true"):
        load_mask_model(str(folder))


@pytest.mark.parametrize(
    ("model_type", "options", "shift", "padding"),
    [
        ("llada", {"ignores": True}, False, "attended"),
        ("llada", {}, False, "hidden"),
        ("Dream", {"list_of_tied": True, "post_init": True}, True, "hidden"),
    ],
)
def test_doubles_of_llada_and_dream_load_with_their_weights(
    tmp_path, modules_cache, model_type, options, shift, padding
):
    folder = tmp_path / f"{model_type.lower()}_{'_'.join(options) or 'plain'}"
    folder.mkdir()
    weights = remote_checkpoint(folder, model_type, **options)
    model = load_mask_model(str(folder), trust_remote_code=True, dtype="float32")
    for name, value in weights.items():
        assert_close(model.state_dict()[name], value)
    predictor = MaskPredictor.of(model, 19)
    assert predictor.logit_shift is shift
    assert predictor.pairwise_mask is (model_type == "Dream")
    assert check_mask_predictor(predictor) == padding
