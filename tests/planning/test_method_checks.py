"""What a method's settings ask of the rest of the recipe is refused by the plan, not in the middle of a run."""

from __future__ import annotations

import pytest

from posttrain.planning.memory import Launch, estimate
from posttrain.planning.shapes import read_shape
from posttrain.recipe import RecipeError, load_recipe
from posttrain.run.plan import make_plan

SCRATCH = "model={scratch: {hidden_size: 32, heads: 2}}"


def plan(root, name, *overrides):
    return make_plan(load_recipe(str(root / "recipes" / "smoke" / f"{name}.yaml"), [SCRATCH, *overrides]))


@pytest.fixture
def here(root, monkeypatch):
    monkeypatch.chdir(root)
    return root


@pytest.mark.parametrize(
    ("name", "override", "refusal"),
    [
        ("drift_calm", "rollout.engine=vllm_server", "method 'drift' samples before or between trainings"),
        (
            "rpo_calm",
            ("objective.imitate=reference", "rollout.engine=vllm_server"),
            "method 'rpo' samples before or between trainings",
        ),
        ("drift_calm", "rollout={engine: vllm, vllm: {sleep: true}}", "the engine is closed before training begins"),
        (
            "rpo_calm",
            ("objective.imitate=reference", "rollout={engine: vllm, vllm: {proof_limit: 0.1}}"),
            "rollout.vllm: 'proof_limit' does nothing with method 'rpo'",
        ),
        ("drift_calm", "rollout.group_size=4", "rollout: 'group_size' does nothing with method 'drift'"),
        ("drift_calm", "rollout.staleness=1", "rollout: 'staleness' does nothing with method 'drift'"),
        ("drift_calm", "objective.seed_data=no.jsonl", "objective: seed_data: no file 'no.jsonl'"),
        ("drift_calm", "train.sync_ref_model=true", "'sync_ref_model' has no place with method 'drift'"),
        ("drift_calm", "data.path=recipes/smoke/data/pairs.jsonl", "posttrain data feedback LOG"),
        ("drift_calm", "data.eval={path: recipes/smoke/data/complaints.jsonl}", "data: 'eval' is not read"),
        ("seppo_calm", "train.max_steps=31", "max_steps is 31, but rounds x steps_per_round = 30"),
        ("seppo_calm", "train={num_train_epochs: 1}", "write max_steps: 30, not epochs"),
        ("seppo_calm", "train.disable_dropout=false", "dropout-free forwards; leave it out"),
        ("seppo_calm", "train.precompute_ref_log_probs=true", "a round reads each pair about once"),
        ("kto_calm", "train.per_device_train_batch_size=1", "TRL's trainer takes 2 or more"),
        ("kto_calm", "data.label=completion", ", and a label is true or false, or 1 or 0"),
        ("kto_calm", "data.label=thumb", "no column 'thumb'"),
        ("kto_pairs", "data.chosen=better", "no column 'better'"),
        ("dpo_calm", "data.label=label", "data: 'label' does nothing with method 'dpo'"),
        ("salsa_sort", "train.beta=0", "beta 0 leaves method 'salsa' without its reference"),
        ("salsa_sort", "train.sync_ref_model=true", "it would overwrite the soup"),
        ("salsa_sort", "objective.others=[runs/nowhere/model]", "objective: others: no folder 'runs/nowhere/model'"),
        ("salsa_sort", "objective.others=[recipes/smoke]", "holds no config.json"),
        (
            "rpo_calm",
            "objective={imitate: dataset, imitation_data: no.jsonl}",
            "objective: imitation_data: no file 'no.jsonl'",
        ),
    ],
)  # fmt: skip
def test_a_recipe_the_method_cannot_run_is_refused(name, override, refusal, here):
    overrides = [override] if isinstance(override, str) else override
    assert any(refusal in line for line in plan(here, name, *overrides).refusals)


@pytest.mark.parametrize(
    ("name", "changes"), [("drift_calm", []), ("rpo_calm", ["objective.imitate=reference"])]
)
def test_vllm_beside_it_is_not(name, changes, here):
    vllm = "rollout={engine: vllm, vllm: {gpu_memory_utilization: 0.8}}"
    model = "model={path: Qwen/Qwen2.5-0.5B}"
    refusals = plan(here, name, *changes, vllm, model).refusals
    assert not [line for line in refusals if line.startswith("rollout")]


@pytest.mark.parametrize("name", ["drift_calm", "seppo_calm", "rpo_calm"])
def test_the_smoke_recipes_themselves_are_not(name, here):
    assert plan(here, name).refusals == []


def test_settings_of_salsas_objective_are_read_strictly(here):
    with pytest.raises(RecipeError, match="GRPO has no setting 'clip_hi'; did you mean 'clip_high'"):
        plan(here, "salsa_sort", "objective.objective_settings.clip_hi=0.3")


def test_rpo_has_a_rollout_section_only_where_it_samples(here):
    with pytest.raises(RecipeError, match="rollout: has no effect with method 'rpo'"):
        plan(here, "rpo_calm", "rollout.temperature=0.7")
    sampling = plan(here, "rpo_calm", "objective.imitate=reference", "rollout.temperature=0.7")
    assert sampling.refusals == []
    assert sampling.recipe.rollout.temperature == 0.7
    assert plan(here, "rpo_calm").recipe.rollout is None


def test_files_of_settings_are_found_beside_the_recipe(tmp_path, here):
    text = (here / "recipes" / "smoke" / "drift_calm.yaml").read_text(encoding="utf-8")
    (tmp_path / "mine.yaml").write_text(
        text.replace("iterations: 2", "seed_data: seeds.jsonl"), encoding="utf-8"
    )
    (tmp_path / "seeds.jsonl").write_text("{}\n", encoding="utf-8")
    recipe = load_recipe(str(tmp_path / "mine.yaml"), [SCRATCH])
    assert recipe.objective.seed_data == str(tmp_path / "seeds.jsonl")
    assert make_plan(recipe).refusals == []


def test_a_run_in_stages_says_how_long_each_is(here):
    # 146 rows in batches of 8: 19 steps, the last of two rows
    assert (
        "the run: 2 iterations, each 19 optimizer steps = 146 rows (1.00 epochs of 146 rows)"
        in plan(here, "drift_calm").batch
    )
    seeded = plan(here, "drift_calm", "objective.seed_data=recipes/smoke/data/pairs.jsonl").batch
    assert any("2 iterations after a seed stage, each 19 optimizer steps" in line for line in seeded)


@pytest.mark.parametrize(
    ("overrides", "copies"),
    [
        ([], 2),  # the soup, and the policy's start
        (["objective.kl_to_start=false"], 1),
        (["model={path: x/y, peft: {r: 2}}"], 1),  # the start is the base under the adapter
    ],
)
def test_memory_counts_the_models_salsa_holds(overrides, copies, here):
    recipe = load_recipe("recipes/smoke/salsa_sort.yaml", [SCRATCH, *overrides])
    shape = read_shape(load_recipe("recipes/smoke/salsa_sort.yaml", [SCRATCH]).model)
    assert estimate(recipe, shape, Launch()).reference == copies * shape.parameters * 4


def test_a_calibration_that_nothing_guards_is_warned_of(here):
    def warnings(*overrides):
        found = plan(here, "capo_sort", *overrides)
        assert found.refusals == []
        return [warning for warning in found.warnings if "unguarded" in warning]

    (warning,) = warnings("objective={calibrate: true}")
    assert warning.startswith("objective: 'calibrate'")
    assert "calibration_holds: true, or train.warmup_steps" in warning
    assert warnings("objective={calibrate: true, calibration_holds: true}") == []
    warm = ("train.warmup_steps=0.1", "train.lr_scheduler_type=constant_with_warmup")
    assert warnings("objective={calibrate: true}", *warm) == []
    assert warnings("objective={}") == []


def test_settings_with_which_a_run_would_not_train_are_refused(here):
    (refusal,) = plan(here, "capo_sort", "objective.calibration_steps=60").refusals
    assert refusal == "objective: 'calibration_steps' 60 leaves nothing of train.max_steps 40 to use it in"
    assert plan(here, "capo_sort", "objective.calibration_steps=38").refusals == []
    with pytest.raises(RecipeError, match="num_candidates"):
        plan(here, "capo_sort", "objective.num_candidates=1")


def test_one_prompt_a_rollout_is_nothing_to_compare_prompts_with(here):
    one = ("train.per_device_train_batch_size=8", "train.steps_per_generation=1")
    (refusal,) = plan(here, "copo_sort", *one).refusals
    assert refusal.startswith(
        "rollout: method 'copo' compares prompts with each other, and one rollout has one"
    )
    (refusal,) = plan(
        here, "capo_sort", "objective={base: copo}", "rewards.0.name=math_answer", *one
    ).refusals
    assert "compares prompts" in refusal
    assert plan(here, "grpo_sort", *one).refusals == []


def test_an_entropy_no_group_can_have_is_warned_of(here):
    (warning,) = [w for w in plan(here, "copo_sort", "objective.rho=9").warnings if "rho" in w]
    assert "rho 9 is more than the 3 bits that 8 answers can differ by" in warning
    assert not [w for w in plan(here, "copo_sort", "objective.rho=2.9").warnings if "rho" in w]


@pytest.mark.parametrize(
    ("objective", "train", "words"),
    [
        ("{}", "sgd", "optimizer_model 'adam' predicts steps that train.optim 'sgd' does not take"),
        ("{optimizer_model: sgd}", "adamw_torch", "optimizer_model 'sgd' predicts steps"),
        ("{}", "lion_32bit", "optimizer_model 'adam' predicts steps"),
        ("{moment_decay: [0.9, 0.95]}", "adamw_torch", "moment_decay (0.9, 0.95) is not train's"),
        ("{optimizer_model: sgd}", "sgd", None),
        ("{}", "adamw_torch_fused", None),
    ],
)
def test_another_optimizer_than_the_one_reckoned_with_is_warned_of(here, objective, train, words):
    found = plan(here, "capo_sort", f"objective={objective}", f"train.optim={train}")
    warnings = [w for w in found.warnings if w.startswith("objective:")]
    assert found.refusals == []
    assert [words in w for w in warnings] == ([] if words is None else [True])


def test_plan_says_how_marked_answers_balance(here):
    even = plan(here, "kto_calm")
    assert even.refusals == []
    assert "marked good 40, bad 120; good_weight x good / (bad_weight x bad) = 1.2" in even.data
    assert not [words for words in even.warnings if "good_weight" in words]
    assert any(line.startswith("completion, good (") for line in even.example)
    (warned,) = [
        words for words in plan(here, "kto_calm", "objective.good_weight=1").warnings if "eq. 9" in words
    ]
    assert "is 0.333, and the paper asks for 1 to 1.5 (eq. 9): objective.good_weight of 3 to 4.5" in warned
    pairs = plan(here, "kto_pairs")
    assert "training: 320 of 320 rows" in pairs.data
    assert (
        "each pair is read as two rows: column 'chosen' marked good, column 'rejected' marked bad"
        in pairs.data
    )


def test_a_row_of_marked_answers_takes_half_of_a_pairs_memory(here):
    found = {}
    for name in ("kto_calm", "dpo_calm"):
        recipe = load_recipe(f"recipes/smoke/{name}.yaml", [SCRATCH])
        shape = read_shape(recipe.model)
        assert shape is not None
        found[name] = estimate(recipe, shape, Launch(1, 0, None, "cuda"))
    assert found["dpo_calm"].layers == 2 * found["kto_calm"].layers
    assert found["dpo_calm"].reference == found["kto_calm"].reference > 0
