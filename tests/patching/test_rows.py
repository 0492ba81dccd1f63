"""Several patches on one base: which act on which row, how strongly, and that nobody else notices."""

from __future__ import annotations

import copy
import threading
import warnings
from dataclasses import replace

import peft
import pytest
import torch
from safetensors.torch import load_file

from cases import CASES, shake, shake_parameters, side_tokens, small_config
from pave import LoraSettings, PatchConfig, SideTokens, attach_patch, detach_patch, load_patch, save_patch
from pave.patching import Plan, Use, patch_name, patch_names, patch_parameters, patch_slot, unload_patch
from pave.video_llms import get_interface

QUESTION = "what sound?"
AUDIO = small_config(targets=("q_proj", "v_proj"))
DEPTH = PatchConfig(
    side_channels={"depth": AUDIO.side_channels["audio"]},
    lora=LoraSettings(rank=3, targets=("v_proj", "down_proj")),
    storage_dtype="float32",
)
LORA_ALONE = PatchConfig(side_channels={}, lora=LoraSettings(rank=2), storage_dtype="float32")


@pytest.fixture(params=CASES, scope="module")
def two(request):
    """(base, model with the patches A of audio and B of depth, batch of two rows, side channels and times)."""
    case = CASES[request.param]
    base, processor = case.build()
    batch = case.batch(processor, (QUESTION, QUESTION))
    times = batch.pop("frame_times")
    model = copy.deepcopy(base)
    attach_both(model)
    sides = {"audio": side_tokens(seed=3), "depth": side_tokens(seed=4)}
    return base, model, batch, {"side_channels": sides, "frame_times": times}


def attach_both(model):
    for seed, (name, config) in enumerate({"A": AUDIO, "B": DEPTH}.items()):
        attach_patch(model, config, name=name)
        shake_one(model, name, seed)
    return model


def shake_one(model, name, seed=0):
    shake_parameters(patch_parameters(model, name), seed)


def alone(base, config, seed, name="default"):
    model = attach_patch(copy.deepcopy(base), config, name=name)
    shake_one(model, name, seed)
    return model


def logits(model, batch, **more):
    with torch.no_grad():
        return model(**batch, **more).logits


def only(given, *channels):
    return {**given, "side_channels": {name: given["side_channels"][name] for name in channels}}


# --- what a selection says


def test_a_selection_is_a_name_strengths_or_nothing_for_all_rows_or_one_a_row():
    names = ("A", "B")
    both = (Use("A", 0.5, 0.5), Use("B", 1.0, 0.0))
    assert Plan.of("A", 2, names) == Plan(((Use("A"),), (Use("A"),)))
    assert Plan.of({"A": 0.5, "B": (1.0, 0.0)}, 1, names) == Plan((both,))
    mixed = Plan.of([None, "B", {"A": 0.5, "B": (1.0, 0.0)}], 3, names)
    assert mixed.rows == ((), (Use("B"),), both)
    assert (mixed.strengths("A"), mixed.lora_strengths("B")) == ([0, 0, 0.5], [0, 1.0, 0.0])
    assert mixed.names() == ["B", "A"]
    assert Plan.of({"A": 1.0, "B": (0.5, 0.0)}, 1, names, factor=0.5).rows == ((Use("A", 0.5, 0.5), Use("B", 0.25, 0.0)),)
    assert Plan.of({"A": 0.0}, 1, names).names() == []


@pytest.mark.parametrize(
    ("patches", "message"),
    [
        ("C", "carries no patch 'C'; attached: A, B"),
        ([None, {"A": 1.0, "C": 0.5}], "carries no patch 'C'; attached: A, B"),
        (["A"], "1 entries for 2 rows"),
        ([["A", "B"], None], "a row takes a name, a mapping from names to strengths, or None for the base, got list"),
        ({"A": -1.0}, "strength of 'A' must be a finite number that is not negative, got -1.0"),
        ({"A": float("nan")}, "must be a finite number"),
        ({"A": "strong"}, "must be a finite number that is not negative, got 'strong'"),
        ({"A": (1.0, 1.0, 1.0)}, r"takes a strength or a pair \(residual, LoRA\)"),
    ],
)
def test_selections_that_cannot_be_are_refused(two, patches, message):
    _, model, batch, given = two
    with pytest.raises(ValueError, match=message):
        model(**batch, **given, patches=patches)


def test_beyond_one_warns(two):
    _, model, batch, given = two
    with pytest.warns(UserWarning, match="strength of 'A' is 1.5: beyond 1"):
        strong = logits(model, batch, **given, patches={"A": 1.5})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not torch.allclose(logits(model, batch, **given, patches={"A": 1.0}), strong, atol=1e-3)


# --- rows


def test_every_row_is_computed_as_in_a_call_of_its_own(two):
    """Base row, A, B, both at strengths, and rows whose channel is missing; against each patch attached alone."""
    base, model, batch, given = two
    expected = logits(base, batch)
    only_a = logits(alone(base, AUDIO, 0), batch, **only(given, "audio"))
    only_b = logits(alone(base, DEPTH, 1), batch, **only(given, "depth"))
    assert torch.equal(logits(model, batch, **given, patches="A"), only_a)
    assert torch.equal(logits(model, batch, **given, patches="B"), only_b)
    assert torch.equal(logits(model, batch, **given, patches={}), expected)
    assert torch.equal(logits(model, batch, **given, patches={"A": 0.0, "B": 0.0}), expected)
    mixed = logits(model, batch, **given, patches=["A", "B"])
    torch.testing.assert_close(mixed[0], only_a[0], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(mixed[1], only_b[1], atol=1e-5, rtol=1e-5)
    with_base = logits(model, batch, **given, patches=[None, {"A": 1.0, "B": 0.5}])
    assert torch.equal(with_base[0], expected[0])
    both = logits(model, batch, **given, patches={"A": 1.0, "B": 0.5})
    torch.testing.assert_close(with_base[1], both[1], atol=1e-5, rtol=1e-5)
    for other in (expected, only_a, only_b, logits(model, batch, **given, patches={"A": 1.0, "B": 1.0})):
        assert not torch.allclose(both[1], other[1], atol=1e-3)


def test_a_row_that_lacks_a_patchs_channel_gets_nothing_of_that_patch(two):
    base, model, batch, given = two
    audio = given["side_channels"]["audio"]
    valid = audio.valid_BK.clone()
    valid[0] = False
    sides = {"audio": SideTokens(audio.embeds_BKMC, valid, audio.times_BK), "depth": given["side_channels"]["depth"]}
    got = logits(model, batch, side_channels=sides, frame_times=given["frame_times"])
    only_b = logits(model, batch, **given, patches="B")
    both = logits(model, batch, **given)
    torch.testing.assert_close(got[0], only_b[0], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(got[1], both[1], atol=1e-5, rtol=1e-5)
    assert torch.equal(logits(model, batch, **only(given, "depth")), only_b)  # A is selected, and no row has its channel
    nothing = logits(model, batch, side_channels={"audio": sides["audio"]}, frame_times=given["frame_times"], patches="A")
    assert torch.equal(nothing[0], logits(base, batch)[0])


def test_residual_and_lora_have_strengths_of_their_own(two):
    base, model, batch, given = two
    no_lora = replace(AUDIO, lora=None)
    fusion_alone = attach_patch(copy.deepcopy(base), no_lora)
    patch_slot(fusion_alone).load_state_dict(patch_slot(model, "A").state_dict())
    expected = logits(fusion_alone, batch, **only(given, "audio"))
    assert torch.equal(logits(model, batch, **given, patches={"A": (1.0, 0.0)}), expected)
    assert torch.equal(
        logits(fusion_alone, batch, **only(given, "audio"), patches={"default": 0.5}),
        logits(model, batch, **given, patches={"A": (0.5, 0.0)}),
    )
    lora_alone = logits(model, batch, **given, patches={"A": (0.0, 1.0)})
    assert not torch.allclose(logits(model, batch, **given, patches={"A": (0.0, 0.5)}), lora_alone, atol=1e-3)
    for other in (expected, logits(base, batch), logits(model, batch, **given, patches="A")):
        assert not torch.allclose(lora_alone, other, atol=1e-3)


def test_the_strength_of_a_row_scales_its_residual(two):
    _, model, batch, given = two
    seen = []
    hook = model.get_decoder().register_forward_pre_hook(lambda _, a, kw: seen.append(kw["inputs_embeds"]), with_kwargs=True)
    for patches in (None, "A", [{"A": 0.5}, {"A": 0.25}]):
        logits(model, batch, **given, patches=[None, None] if patches is None else patches)
    hook.remove()
    base, full, scaled = seen
    for row, strength in enumerate((0.5, 0.25)):
        torch.testing.assert_close(scaled[row] - base[row], strength * (full[row] - base[row]), atol=1e-5, rtol=1e-4)
        assert (full[row] - base[row]).abs().max() > 0.1


def test_generation_of_a_mixed_batch_is_that_of_its_rows(two):
    base, model, batch, given = two
    greedy = {"max_new_tokens": 5, "min_new_tokens": 5, "do_sample": False}
    for how in (greedy, {**greedy, "num_beams": 2}):
        rows = [model.generate(**batch, **given, **how, patches=patches) for patches in ("A", {"A": 1.0, "B": 0.5})]
        expected = base.generate(**batch, **how)
        mixed = model.generate(**batch, **given, **how, patches=["A", {"A": 1.0, "B": 0.5}])
        assert torch.equal(mixed[0], rows[0][0]) and torch.equal(mixed[1], rows[1][1])
        half = model.generate(**batch, **given, **how, patches=[None, "A"])
        assert torch.equal(half[0], expected[0]) and torch.equal(half[1], rows[0][1])
        assert not torch.equal(rows[0], expected)


def test_gradients_of_a_mixed_batch_reach_each_patch_from_its_own_rows(two):
    base, _, batch, given = two
    model = attach_both(copy.deepcopy(base)).train()
    labels = torch.where(batch["attention_mask"].bool(), batch["input_ids"], -100)

    def gradients(names, **more):
        model.zero_grad()
        model(**batch, **given, labels=labels, **more).loss.backward()
        return [p.grad.clone() for name in names for p in patch_parameters(model, name)]

    assert all(not g.any() for g in gradients("B", patches="A"))  # zero rather than none, for processes that wait
    assert all(g.any() for g in gradients("A", patches="A"))
    assert all(g.any() for g in gradients("AB", patches=["A", "B"]))
    plain = gradients("AB", patches=["A", {"B": 0.5}])
    model.gradient_checkpointing_enable({"use_reentrant": False})
    for one, other in zip(plain, gradients("AB", patches=["A", {"B": 0.5}]), strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-5)


def test_a_row_with_lora_only_keeps_it_where_it_is_selected(two):
    base, _, batch, given = two
    model = copy.deepcopy(base)
    attach_patch(model, LORA_ALONE, name="text")
    shake_one(model, "text")
    everywhere = logits(model, batch)
    mixed = logits(model, batch, patches=["text", None])
    assert torch.equal(mixed[1], logits(base, batch)[1])
    torch.testing.assert_close(mixed[0], everywhere[0], atol=1e-5, rtol=1e-5)
    assert not torch.allclose(everywhere, logits(base, batch), atol=1e-3)


# --- selection


def test_what_acts_by_default_in_a_block_and_in_a_call(two):
    base, model, batch, given = two
    model = copy.deepcopy(model)
    a, b, both, none = (logits(model, batch, **given, patches=p) for p in ("A", "B", {"A": 1.0, "B": 1.0}, {}))
    flags = [p.requires_grad for p in model.parameters()]
    assert torch.equal(logits(model, batch, **given), both)
    model.select_patches("A")
    assert torch.equal(logits(model, batch, **given), a)
    with model.patches_selected("B"):
        assert torch.equal(logits(model, batch, **given), b)
        assert torch.equal(logits(model, batch, **given, patches="A"), a)
        with model.patch_disabled():
            assert torch.equal(logits(model, batch, **given), none)
            assert torch.equal(logits(model, batch, **given, patches="A"), none)
        half = logits(model, batch, **given, patches={"B": 0.5})
        with model.patch_scaled(0.5):
            assert torch.equal(logits(model, batch, **given), half)
        elsewhere = []
        thread = threading.Thread(target=lambda: elsewhere.append(logits(model, batch, **given)))
        thread.start()
        thread.join()
        assert torch.equal(elsewhere[0], a)
    model.select_patches(None)
    assert torch.equal(logits(model, batch, **given), none) and torch.equal(none, logits(base, batch))
    assert [p.requires_grad for p in model.parameters()] == flags
    with pytest.raises(ValueError, match="carries no patch 'C'; attached: A, B"):
        model.select_patches("C")
    with pytest.raises(ValueError, match="carries no patch 'C'"):
        model.patches_selected({"C": 1.0})


def test_threads_with_different_patches_do_not_mix(two):
    _, model, batch, given = two
    plans = ["A", "B", [None, "A"], {"A": 0.5, "B": 0.5}]
    expected = [logits(model, batch, **given, patches=plan) for plan in plans]
    wrong = []

    def work(index):
        for _ in range(5):
            if not torch.equal(logits(model, batch, **given, patches=plans[index]), expected[index]):
                wrong.append(index)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


# --- side channels of several patches


def test_two_patches_may_both_have_a_channel_called_audio(two):
    base, _, batch, given = two
    model = copy.deepcopy(base)
    wide = replace(AUDIO, side_channels={"audio": replace(AUDIO.side_channels["audio"], width=5)})
    attach_patch(model, AUDIO, name="A")
    attach_patch(model, wide, name="W")
    shake_one(model, "A", 0)
    shake_one(model, "W", 1)
    sides, times = {"A": side_tokens(seed=3), "W": side_tokens(seed=4, width=5)}, given["frame_times"]
    nested = {name: {"audio": side} for name, side in sides.items()}
    both = logits(model, batch, side_channels=nested, frame_times=times)
    with pytest.raises(ValueError, match="the patches A, W have channels 'audio' of different encoders; name the patch"):
        model(**batch, side_channels={"audio": sides["A"]}, frame_times=times)
    plain = logits(model, batch, side_channels={"audio": sides["A"]}, frame_times=times, patches="A")  # only A acts
    assert torch.equal(plain, logits(model, batch, side_channels=nested, frame_times=times, patches="A"))
    assert torch.equal(plain, logits(alone(base, AUDIO, 0), batch, side_channels={"audio": sides["A"]}, frame_times=times))
    assert not torch.allclose(both, plain, atol=1e-3)
    same = attach_patch(attach_patch(copy.deepcopy(base), AUDIO, name="A"), AUDIO, name="B")
    shake_one(same, "A", 0)
    shake_one(same, "B", 1)
    shared = logits(same, batch, side_channels={"audio": sides["A"]}, frame_times=times)
    assert torch.equal(shared, logits(same, batch, side_channels={n: {"audio": sides["A"]} for n in "AB"}, frame_times=times))


@pytest.mark.parametrize(
    ("sides", "message"),
    [
        ({"C": {"audio": side_tokens()}}, "the model carries no patch 'C'; attached: A, B"),
        ({"A": {"depth": side_tokens()}}, "the patch 'A' has no channel 'depth'; it has: audio"),
        ({"sonar": side_tokens()}, "no patch has a channel 'sonar'"),
        ({"audio": side_tokens(), "A": {"audio": side_tokens()}}, "channel 'audio' of the patch 'A' is given twice"),
        ({"audio": side_tokens(), "depth": side_tokens(videos=1)}, "disagree in the number of videos"),
    ],
)
def test_side_channels_that_fit_no_patch_are_refused(two, sides, message):
    _, model, batch, given = two
    with pytest.raises(ValueError, match=message):
        model(**batch, side_channels=sides, frame_times=given["frame_times"])


# --- attaching, loading, taking off


def test_patches_are_loaded_under_names_and_taken_off_one_by_one(two, tmp_path):
    base, model, batch, given = two
    save_patch(model, tmp_path / "a", name="A")
    save_patch(model, tmp_path / "b", name="B")
    with pytest.raises(ValueError, match=r"carries several patches \(A, B\); say by name which one is meant"):
        save_patch(model, tmp_path / "c")
    with pytest.raises(ValueError, match="ask patch_configs"):
        _ = model.patch_config
    loaded = load_patch(load_patch(copy.deepcopy(base), tmp_path / "a", name="hearing"), tmp_path / "b")
    assert patch_names(loaded) == loaded.patch_names == ("hearing", "B")
    with pytest.raises(ValueError, match="already carries a patch 'B'.*give this one another name"):
        load_patch(loaded, tmp_path / "a", name="B")
    assert torch.equal(logits(loaded, batch, **given), logits(model, batch, **given))
    loaded.select_patches({"hearing": 1.0, "B": 0.5})
    unload_patch(loaded, "hearing")
    assert patch_name(loaded) == "B"
    assert torch.equal(logits(loaded, batch, **only(given, "depth")), logits(model, batch, **given, patches={"B": 0.5}))
    with pytest.raises(ValueError, match="carries no patch 'hearing'; attached: B"):
        unload_patch(loaded, "hearing")
    unload_patch(loaded, "B")
    assert type(loaded) is type(base) and list(loaded.state_dict()) == list(base.state_dict())
    assert torch.equal(logits(loaded, batch), logits(base, batch))


def test_taking_off_all_patches_at_once_gives_the_base(two):
    base, model, batch, _ = two
    twin = detach_patch(copy.deepcopy(model))
    assert type(twin) is type(base) and set(twin.__dict__) == set(base.__dict__)
    assert torch.equal(logits(twin, batch), logits(base, batch))


def test_attaching_another_patch_leaves_the_first_ones_flags(two):
    base, _, _, _ = two
    model = attach_patch(copy.deepcopy(base), AUDIO, name="A")
    for parameter in patch_parameters(model, "A"):
        parameter.requires_grad_(False)
    attach_patch(model, DEPTH, name="B")
    assert not any(p.requires_grad for p in patch_parameters(model, "A"))
    assert all(p.requires_grad for p in patch_parameters(model, "B"))
    own = {id(p) for p in patch_parameters(model, "B")}
    assert all(p.requires_grad == (id(p) in own) for p in model.parameters())


# --- calls that go on, calls under way


def decoded_step_by_step(model, batch, steps, **given):
    """Greedy tokens of a loop that hands on the cache and nothing else."""
    mask, positions, tokens = batch["attention_mask"], batch.get("position_ids"), []
    with torch.no_grad():
        output = model(**batch, **given, use_cache=True)
        for _ in range(steps):
            tokens.append(output.logits[:, -1].argmax(-1))
            mask = torch.cat([mask, torch.ones_like(mask[:, :1])], dim=1)
            more = (
                {}
                if positions is None
                else {"position_ids": positions.amax(dim=(0, 2), keepdim=True).expand(3, -1, 1) + len(tokens)}
            )
            output = model(input_ids=tokens[-1][:, None], attention_mask=mask, past_key_values=output.past_key_values, **more)
    return torch.stack(tokens, dim=1), output.logits


def test_a_decoding_loop_of_ones_own_keeps_the_patches_of_its_rows(two):
    base, model, batch, given = two
    positions = get_interface(base.config).position_ids(base.config, batch)  # without them Qwen2.5-VL takes no such step
    batch = batch if positions is None else {**batch, "position_ids": positions}
    for patches in ("A", ["B", {"A": 1.0, "B": 0.5}], [None, "A"]):
        expected = model.generate(**batch, **given, patches=patches, max_new_tokens=6, min_new_tokens=6, do_sample=False)
        tokens, last = decoded_step_by_step(model, batch, 6, **given, patches=patches)
        assert torch.equal(tokens, expected[:, batch["input_ids"].shape[1] :])
        longer = {**batch, "input_ids": torch.cat([batch["input_ids"], tokens], dim=1)}
        longer["attention_mask"] = torch.cat([batch["attention_mask"], torch.ones_like(tokens)], dim=1)
        if "mm_token_type_ids" in batch:
            longer["mm_token_type_ids"] = torch.cat([batch["mm_token_type_ids"], torch.zeros_like(tokens)], dim=1)
            longer["position_ids"] = get_interface(base.config).position_ids(base.config, longer)
        whole = logits(model, longer, **given, patches=patches)[:, -1:]
        torch.testing.assert_close(last, whole, atol=1e-5, rtol=1e-5)
    with model.patch_disabled():
        assert torch.equal(decoded_step_by_step(model, batch, 6, **given)[1], decoded_step_by_step(base, batch, 6)[1])
    copied = copy.deepcopy(model)
    with torch.no_grad():
        cache = copied(**batch, **given, use_cache=True).past_key_values
        ids, mask = batch["input_ids"][:, -1:], torch.nn.functional.pad(batch["attention_mask"], (0, 1), value=1)
        detach_patch(copied, "A")
        with pytest.raises(ValueError, match="come from a call with the patch 'A', which is not attached any more"):
            copied(input_ids=ids, attention_mask=mask, past_key_values=cache)


def test_a_patch_cannot_be_taken_off_while_a_call_runs_elsewhere(two):
    _, model, batch, given = two
    model = copy.deepcopy(model)
    expected = logits(model, batch, **given)
    inside, go_on, got = threading.Event(), threading.Event(), []

    def wait(*_):
        inside.set()
        assert go_on.wait(60)

    hook = model.get_decoder().register_forward_pre_hook(wait)
    thread = threading.Thread(target=lambda: got.append(logits(model, batch, **given)))
    thread.start()
    assert inside.wait(60)
    with pytest.raises(ValueError, match=r"1 call\(s\) of this model are under way"):
        unload_patch(model, "A")
    go_on.set()
    thread.join()
    hook.remove()
    assert torch.equal(got[0], expected)
    unload_patch(model, "A")
    assert patch_names(model) == ("B",)


# --- beside PEFT


def with_adapter(model, name="mine"):
    decoder = next(path for path, m in model.named_modules() if m is model.get_decoder())
    targets = decoder.replace(".", r"\.") + r"\..*\.(q_proj|k_proj)"
    model.add_adapter(peft.LoraConfig(r=2, target_modules=targets), name)
    with torch.no_grad():
        for path, parameter in model.named_parameters():
            if ".lora_" in path and f".{name}." in path:
                parameter.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(5)) * 0.3)
    return model


@pytest.mark.parametrize("first", ["theirs", "ours"])
def test_an_adapter_of_the_users_keeps_acting_before_under_and_after_patches(two, first, tmp_path):
    base, both, batch, given = two
    own = with_adapter(copy.deepcopy(base))
    expected = logits(own, batch)
    if first == "theirs":
        model = attach_both(copy.deepcopy(own))
    else:
        model = with_adapter(attach_both(copy.deepcopy(base)))
    assert not torch.allclose(expected, logits(base, batch), atol=1e-3)
    flags = [p.requires_grad for name in "AB" for p in patch_parameters(model, name)]
    assert all(flags)
    assert torch.equal(logits(model, batch, **given, patches={}), expected)
    mixed = logits(model, batch, **given, patches=[None, "A"])
    assert torch.equal(mixed[0], expected[0]) and not torch.allclose(mixed[1], expected[1], atol=1e-3)
    model.disable_adapters()
    torch.testing.assert_close(logits(model, batch, **given), logits(both, batch, **given))
    model.enable_adapters()
    model.set_adapter("mine")
    assert torch.equal(logits(model, batch, **given, patches=[None, "A"]), mixed)
    assert [p.requires_grad for name in "AB" for p in patch_parameters(model, name)] == flags
    with pytest.raises(ValueError, match="'pave_A' is the LoRA of a patch; choose patches by select_patches"):
        model.set_adapter("pave_A")
    for name, saved in (("own", own), ("patched", model)):
        saved.save_pretrained(tmp_path / name)
    files = [load_file(tmp_path / name / "adapter_model.safetensors") for name in ("own", "patched")]
    assert files[0] and files[0].keys() == files[1].keys() and all(torch.equal(files[0][k], files[1][k]) for k in files[0])
    assert (tmp_path / "patched" / "pave_patches" / "B" / "patch_config.json").is_file()
    detach_patch(model, "A")
    detach_patch(model, "B")
    assert torch.equal(logits(model, batch), expected) and list(model.peft_config) == ["mine"]


def test_the_users_adapter_can_be_deleted_under_a_patch(two):
    base, both, batch, given = two
    model = with_adapter(attach_both(copy.deepcopy(base)))
    model.delete_adapter("mine")
    torch.testing.assert_close(logits(model, batch, **given), logits(both, batch, **given))
    detach_patch(model)
    assert torch.equal(logits(model, batch), logits(base, batch))


def test_a_peft_model_is_patched_inside(two):
    base, _, batch, given = two
    decoder = next(path for path, m in base.named_modules() if m is base.get_decoder())
    config = peft.LoraConfig(r=2, target_modules=decoder.replace(".", r"\.") + r"\..*\.q_proj", init_lora_weights=False)
    torch.manual_seed(0)
    wrapped = peft.get_peft_model(copy.deepcopy(base), config).eval()
    expected = logits(wrapped, batch)
    with pytest.raises(ValueError, match=r"attach patches to the model inside, peft_model.get_base_model\(\)"):
        attach_patch(wrapped, AUDIO)
    attach_both(wrapped.get_base_model())
    mixed = logits(wrapped, batch, **given, patches=[None, "A"])
    assert torch.equal(mixed[0], expected[0]) and not torch.allclose(mixed[1], expected[1], atol=1e-3)
    with pytest.raises(ValueError, match="carries LoRA of the patches A.*, which would be lost: detach them"):
        wrapped.merge_and_unload()


def test_get_peft_model_on_a_patched_model_reaches_neither_tensors_nor_names(two):
    base, _, batch, given = two
    model = copy.deepcopy(base)
    attach_patch(model, AUDIO, name="default")
    shake(model)
    expected = logits(model, batch, **only(given, "audio"))
    config = peft.LoraConfig(r=2, target_modules=["q_proj"], exclude_modules=r".*pave_patches.*|.*vis.*")
    wrapped = peft.get_peft_model(model, config).eval()
    assert torch.equal(logits(wrapped, batch, **only(given, "audio")), expected)
