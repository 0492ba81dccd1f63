"""The paper's module: against a slow reference, in ragged batches, at its edges, and its sizes."""

import copy
import itertools

import pytest
import torch
from torch import nn

from fusion.slow_reference import make_module, slow_residual
from pave.fusion import TemporalAlignedCrossAttention
from pave.tokens import QuestionTokens, SideTokens, VideoTokens

S, M, C, Q, E = 4, 4, 5, 6, 12


def rand(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def one_video(T, K, seed=0, tokens_per_frame=S, tokens_per_step=M, duration=10.0):
    """Queries, side features and irregular times of one video."""
    generator = torch.Generator().manual_seed(seed)
    frame_times = (torch.rand(T, generator=generator, dtype=torch.float64) * duration).sort().values
    side_times = torch.rand(K, generator=generator, dtype=torch.float64) * duration
    return (
        rand(T, tokens_per_frame, Q, seed=seed + 1),
        rand(K, tokens_per_step, C, seed=seed + 2),
        frame_times,
        side_times,
    )


def batch_of(videos):
    """Pad videos of ``one_video`` into one batch; padding holds numbers that would show if they were read."""
    T = max(len(q) for q, *_ in videos)
    queries = torch.full((len(videos), T, *videos[0][0].shape[1:]), 1e3, dtype=torch.float64)
    valid = torch.zeros(len(videos), T, dtype=torch.bool)
    times = torch.full((len(videos), T), 1e6, dtype=torch.float64)
    for b, (q, _, frame_times, _) in enumerate(videos):
        queries[b, : len(q)], valid[b, : len(q)], times[b, : len(q)] = q, True, frame_times
    side = SideTokens.from_videos(
        [x if len(x) else None for _, x, _, _ in videos],
        [t if len(x) else None for _, x, _, t in videos],
        width=C,
        tokens_per_step=videos[0][1].shape[1],
    )
    return VideoTokens(queries, valid, times), side


def prompt(rows, seed=3, length=5):
    """Prompts of different lengths, with noise in the padding."""
    valid = torch.arange(length)[None] < torch.tensor([[2 + b % (length - 1)] for b in range(rows)])
    return QuestionTokens(rand(rows, length, E, seed=seed), valid)


RAGGED = [one_video(4, 9, 10), one_video(6, 3, 20), one_video(1, 5, 30), one_video(5, 1, 40), one_video(3, 0, 50)]

OPTIONS = [
    {"alignment": "timestamps"},
    {"alignment": "timestamps", "neighbourhood_frames": 1, "rope": True, "gate": True},
    {"alignment": "timestamps", "neighbourhood_seconds": 0.7, "empty_frames": "nearest", "share_key_value_projection": True},
    {"alignment": "timestamps", "empty_frames": "interpolate", "rope": True, "num_layers": 1},
    {"alignment": "timestamps", "neighbourhood_frames": 2, "empty_frames": "interpolate", "gate": True},
    {"alignment": "index"},
    {"alignment": "index", "rope": True, "share_key_value_projection": True, "num_layers": 3},
    {"alignment": "index", "neighbourhood_frames": 1, "gate": True, "rope": True},
    {"alignment": "index", "output_mlp": False, "width": E, "num_heads": 1},
    {"alignment": "index", "output_norm": False},
]


def name(options):
    return "-".join(f"{key}={value}" for key, value in options.items())


@pytest.mark.parametrize("options", OPTIONS, ids=name)
def test_equals_the_slow_reference_in_a_ragged_batch(options):
    """Different numbers of frames and steps, fewer and more steps than frames, one frame, one step, no channel."""
    module = make_module(**options)
    video, side = batch_of(RAGGED)
    question = prompt(len(RAGGED)) if options.get("gate") else None
    with torch.no_grad():
        got = module(video, side, question)
    rule = {
        "n": options.get("neighbourhood_frames", 0),
        "seconds": options.get("neighbourhood_seconds", 0.0),
        "empty_frames": options.get("empty_frames", "skip"),
    }
    read = 0
    for b, (queries, features, frame_times, side_times) in enumerate(RAGGED):
        order = side_times.argsort() if options["alignment"] == "index" else torch.arange(len(side_times))
        asked = None if question is None else question.embeds_BLE[b][question.valid_BL[b]]
        wanted = slow_residual(
            module, queries, features[order], frame_times.tolist(), side_times[order].tolist(), asked, **rule
        )
        torch.testing.assert_close(got[b, : len(queries)], wanted, atol=2e-6, rtol=2e-6)
        assert (got[b, len(queries) :] == 0).all()
        read += int((wanted != 0).any(dim=-1).sum())
    assert read >= 20  # tokens that got a residual at all


@pytest.mark.parametrize(("tokens_per_frame", "tokens_per_step"), [(9, 1), (1, 4), (4, 9), (9, 4)])
@pytest.mark.parametrize("alignment", ["index", "timestamps"])
def test_rope_over_grids_of_different_sides(alignment, tokens_per_frame, tokens_per_step):
    module = make_module(rope=True, alignment=alignment)
    queries, features, frame_times, side_times = one_video(3, 7, 5, tokens_per_frame, tokens_per_step)
    side_times = side_times.sort().values
    video, side = batch_of([(queries, features, frame_times, side_times)])
    with torch.no_grad():
        got = module(video, side)[0]
    wanted = slow_residual(module, queries, features, frame_times.tolist(), side_times.tolist())
    torch.testing.assert_close(got, wanted, atol=2e-6, rtol=2e-6)


def test_rope_on_grids_that_are_no_squares():
    """The base's grid is used where it tells one; without it a non-square number of tokens is refused."""
    module = make_module(rope=True)
    video, side = batch_of([one_video(3, 7, 5, tokens_per_frame=6)])
    with pytest.raises(ValueError, match="6 video tokens per frame form no square"):
        module(video, side)
    video.grid = (2, 3)
    wide = module(video, side)
    video.grid = (3, 2)
    assert not torch.allclose(wide, module(video, side))
    video, side = batch_of([one_video(3, 7, 5, tokens_per_step=6)])
    with pytest.raises(ValueError, match="6 side tokens per step form no square"):
        module(video, side)


def test_learnable_queries():
    module = make_module(query_source="learnable", query_width=None, num_frames=4, tokens_per_frame=S, alignment="index")
    assert module.query_embed is None
    videos = [one_video(4, 9, 10), one_video(4, 2, 11)]
    video, side = batch_of(videos)
    got = module(video, side)
    for b, (queries, features, _, side_times) in enumerate(videos):
        torch.testing.assert_close(got[b], slow_residual(module, queries, features[side_times.argsort()]))
    with pytest.raises(ValueError, match=r"table is for 4 x 4 tokens.*video has 6 x 4"):
        module(*batch_of([one_video(6, 3)]))


def test_pre_projector_queries():
    module = make_module(query_source="pre_projector")
    queries, features, frame_times, side_times = one_video(3, 8, 1)
    side = SideTokens(features[None], times_BK=side_times[None])
    video = VideoTokens(torch.zeros(1, 3, S, E), times_BT=frame_times[None], pre_projector_BTSC=queries[None])
    wanted = slow_residual(module, queries, features, frame_times.tolist(), side_times.tolist())
    torch.testing.assert_close(module(video, side)[0], wanted)
    with pytest.raises(ValueError, match="gave no features from before its projector"):
        module(VideoTokens(torch.zeros(1, 3, S, E), times_BT=frame_times[None]), side)


def test_uniform_times_equal_index():
    """Equal outputs, not only equal windows, wherever the steps divide evenly."""
    by_time = make_module(alignment="timestamps", neighbourhood_frames=1)
    by_index = make_module(alignment="index", neighbourhood_frames=1)
    for T, a in itertools.product((1, 2, 5), (1, 3)):
        video = VideoTokens(rand(1, T, S, Q), times_BT=(torch.arange(T)[None] + 0.5) * 30 / T)
        side = SideTokens(rand(1, T * a, M, C), times_BK=(torch.arange(T * a)[None] + 0.5) * 30 / (T * a))
        assert torch.equal(by_time(video, side), by_index(video, side))


@pytest.mark.parametrize("options", [{}, {"gate": True, "rope": True}, {"output_norm": False}, {"alignment": "index"}])
def test_fresh_module_is_exactly_zero(options):
    torch.manual_seed(0)
    module = TemporalAlignedCrossAttention(
        side_width=C, llm_width=E, query_width=Q, width=32, embed_width=8, **options
    ).double()
    video, side = batch_of(RAGGED)
    got = module(video, side, prompt(len(RAGGED)))
    assert got.shape == (5, 6, S, E)
    assert (got == 0).all()
    opening = module.output_norm.weight if module.output_norm is not None else module.output_mlp[-1].weight
    nn.init.ones_(opening)
    assert (module(video, side, prompt(len(RAGGED))) != 0).any()


def test_steps_that_are_not_finite_change_nothing():
    module = make_module(rope=True, gate=True)
    video, side = batch_of(RAGGED)
    question = prompt(5)
    clean = SideTokens(side.embeds_BKMC.clone(), side.valid_BK.clone(), side.times_BK)
    clean.valid_BK[0, 2] = clean.valid_BK[1, 0] = False
    for bad in (torch.nan, torch.inf, -torch.inf):
        side.embeds_BKMC[0, 2, 1, 3] = bad
        side.embeds_BKMC[1, 0] = bad
        got = module(video, side, question)
        assert torch.isfinite(got).all()
        assert torch.equal(got, module(video, clean, question))


def test_features_too_large_for_half_precision_count_as_not_finite():
    module = make_module(dtype=torch.float16)
    video, side = batch_of(RAGGED[:1])
    side.embeds_BKMC[0, 0] = 1e6
    assert torch.isfinite(module(video, side)).all()


def test_no_channel_anywhere_still_reaches_every_parameter():
    """With K = 0 as from_videos gives it; gradients are zeros, not None, so distributed wrappers see them all."""
    module = make_module(gate=True)
    queries, *_ = one_video(3, 0)
    side = SideTokens.from_videos([None, None], [None, None], width=C, tokens_per_step=M)
    assert side.embeds_BKMC.shape[1] == 0
    video = VideoTokens(torch.stack([queries, queries]), times_BT=torch.arange(3.0).expand(2, 3))
    got = module(video, side, prompt(2))
    assert (got == 0).all()
    got.sum().backward()
    for parameter in module.parameters():
        assert (parameter.grad == 0).all()


def test_gradients_reach_every_parameter_after_one_step():
    """At the identity only the output norm moves; one step later everything does."""
    torch.manual_seed(0)
    module = TemporalAlignedCrossAttention(
        side_width=C, llm_width=E, query_width=Q, width=16, embed_width=8, gate=True
    ).double()
    video, side = batch_of(RAGGED)
    target, question = rand(5, 6, S, E, seed=9), prompt(5)

    def backward():
        module.zero_grad()
        (module(video, side, question) - target).square().sum().backward()
        return {n for n, p in module.named_parameters() if bool((p.grad != 0).any())}

    assert backward() == {"output_norm.weight", "output_norm.bias"}
    torch.optim.SGD(module.parameters(), lr=1e-2).step()
    moved = backward()
    assert moved >= {n for n, _ in module.named_parameters() if not n.startswith("gate.")}
    assert {"gate.to_scalar.weight", "gate.to_scalar.bias"} <= moved
    torch.optim.SGD(module.parameters(), lr=1e-2).step()
    silent = {n for n, _ in module.named_parameters()} - backward()
    assert not silent
    assert all(torch.isfinite(p.grad).all() for p in module.parameters())


def test_gradients_are_right():
    module = make_module(num_layers=1, width=4, embed_width=3, num_heads=2, gate=True, neighbourhood_frames=1)
    video, side = batch_of([one_video(2, 3, 1, tokens_per_frame=1, tokens_per_step=1), one_video(1, 0, 2, 1, 1)])
    question = prompt(2)
    names = [n for n, _ in module.named_parameters()]

    def run(*values):
        return torch.func.functional_call(module, dict(zip(names, values)), (video, side, question))

    values = [p.detach().clone().requires_grad_() for p in module.parameters()]
    assert torch.autograd.gradcheck(run, values, fast_mode=True)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision(dtype):
    """Computes in the parameters' dtype whatever comes in, close to the exact result; times stay exact."""
    exact = make_module(rope=True, gate=True)
    low = copy.deepcopy(exact).to(dtype)
    video, side = batch_of(RAGGED)
    video.times_BT += 1e5
    side.times_BK += 1e5
    question = prompt(5)
    want, got = exact(video, side, question), low(video, side, question)
    assert got.dtype == dtype
    assert torch.equal(got.abs().sum(dim=(2, 3)) > 0, want.abs().sum(dim=(2, 3)) > 0)
    assert (got.double() - want).abs().mean() < 0.05 * want.abs().mean()


def test_autocast_returns_the_parameters_dtype():
    module = make_module(dtype=torch.float32, rope=True, gate=True)
    video, side = batch_of(RAGGED)
    want = module(video, side, prompt(5))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = module(video, side, prompt(5))
    assert got.dtype == torch.float32
    assert not torch.equal(got, want)
    assert (got - want).abs().mean() < 0.05 * want.abs().mean()


def test_compiles():
    module = make_module(rope=True)
    video, side = batch_of(RAGGED)
    compiled = torch.compile(module, backend="eager")
    torch.testing.assert_close(compiled(video, side), module(video, side))


def test_attention_map_shows_what_the_forward_used():
    """One layer, one head per half: the weights applied to the values by hand give the same tokens."""
    module = make_module(num_layers=1, empty_frames="interpolate")
    video, side = batch_of(RAGGED)
    weights = module.attention_map(video, side)
    B, T, K = 5, 6, side.valid_BK.shape[1]
    assert weights.shape == (B, T, module.num_heads, S, K, M)
    reads = (video.valid_BT & side.present_B()[:, None])[:, :, None, None].expand(B, T, module.num_heads, S)
    torch.testing.assert_close(weights.sum(dim=(-1, -2)), reads.double())
    assert (weights.sum(dim=(1, 2, 3, 5))[~side.valid_BK] == 0).all()
    layer = module.layers[0]
    value = layer.value(module.side_embed(side.embeds_BKMC)).unflatten(-1, (module.num_heads, -1))
    token = module.query_embed(video.post_projector_BTSE)
    token = token + torch.einsum("btnskm,bkmnh->btsnh", weights, value).flatten(-2)
    token = token + layer.ffn(token)
    by_hand = module.output_norm(module.output_mlp(token)) * reads[:, :, 0, :, None]
    torch.testing.assert_close(by_hand, module(video, side))


def test_attention_map_picks_the_layer():
    module = make_module(num_layers=3)
    video, side = batch_of(RAGGED)
    first, last = module.attention_map(video, side, layer=0), module.attention_map(video, side, layer=2)
    assert torch.equal(last, module.attention_map(video, side))
    assert not torch.allclose(first, last)
    one = make_module(num_layers=3)
    one.layers = one.layers[:1]
    assert torch.equal(first, one.attention_map(video, side))


def test_shared_projection_has_no_value_parameters():
    shared, own = make_module(share_key_value_projection=True), make_module()
    extra = {n for n, _ in own.named_parameters()} - {n for n, _ in shared.named_parameters()}
    assert extra == {f"layers.{i}.value.{kind}" for i in (0, 1) for kind in ("weight", "bias")}


def test_parameter_groups_are_disjoint_and_complete():
    for options in ({"gate": True}, {}, {"output_norm": False}):
        module = make_module(**options)
        groups = module.parameter_groups()
        assert set(groups) == {"output_norm", "gate", "fusion"}
        flat = [id(p) for group in groups.values() for p in group]
        assert sorted(flat) == sorted(id(p) for p in module.parameters())
        assert len(groups["output_norm"]) == (2 if module.output_norm is not None else 0)
        assert bool(groups["gate"]) == bool(options.get("gate"))


@pytest.mark.parametrize(
    ("llm_width", "layers", "published"), [(3584, 2, 8_996_352), (896, 2, 6_235_776), (3584, 3, 10_833_920)]
)
def test_published_parameter_counts(llm_width, layers, published):
    """The published modules hold a value projection that is never used: with it (the default) the counts are equal, and
    without it (the compatible mode) they are smaller by exactly its size."""
    sizes = {
        "side_width": 1024,
        "llm_width": llm_width,
        "query_width": 1152,
        "width": 512,
        "embed_width": 512,
        "num_layers": layers,
    }
    with torch.device("meta"):
        own = TemporalAlignedCrossAttention(**sizes)
        shared = TemporalAlignedCrossAttention(**sizes, share_key_value_projection=True)
    unused = layers * (512 * 512 + 512)
    assert sum(p.numel() for p in own.parameters()) == published
    assert sum(p.numel() for p in shared.parameters()) == published - unused


def test_published_sizes_in_megabytes():
    """17.99 and 12.47 and 21.67 MB at 16 bit."""
    assert [round(n * 2 / 1e6, 2) for n in (8_996_352, 6_235_776, 10_833_920)] == [17.99, 12.47, 21.67]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"alignment": "time"}, "alignment must be one of 'timestamps', 'index', got 'time'"),
        ({"empty_frames": "zero"}, "empty_frames must be one of"),
        ({"query_source": "tower"}, "query_source must be one of"),
        ({"width": 10, "num_heads": 4}, r"width \(10\) must be a multiple of num_heads \(4\)"),
        ({"output_mlp": False}, r"output_mlp False needs width \(256\) equal to the language model's width \(12\)"),
        ({"rope": True, "width": 48, "num_heads": 4}, "multiple of 8, got 12"),
        ({"query_width": None}, "needs query_width"),
        ({"query_source": "learnable"}, "needs num_frames and tokens_per_frame"),
    ],
)
def test_contradicting_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        TemporalAlignedCrossAttention(**{"side_width": C, "llm_width": E, "query_width": Q, **options})


def test_inputs_that_do_not_fit_are_refused():
    module = make_module(gate=True)
    video, side = batch_of(RAGGED)
    with pytest.raises(ValueError, match="gate: the instruction-aware gate needs the prompt"):
        module(video, side)
    with pytest.raises(ValueError, match="features are 7 wide, but the patch was built for width 5"):
        module(video, SideTokens(torch.zeros(5, 3, M, 7), times_BK=torch.zeros(5, 3)), prompt(5))
    with pytest.raises(ValueError, match="tokens of 2 videos for a batch of 5 videos"):
        module(video, side.select([0, 1]), prompt(5))
    with pytest.raises(ValueError, match="features are 9 wide, but the patch was built for width 6"):
        module(VideoTokens(torch.zeros(5, 6, S, 9), times_BT=torch.zeros(5, 6)), side, prompt(5))


def test_dropout_only_while_training():
    module = make_module(dropout=0.5)
    video, side = batch_of(RAGGED)
    assert torch.equal(module(video, side), module(video, side))
    module.train()
    assert not torch.equal(module(video, side), module(video, side))


def test_deepcopy_and_state_dict_round_trip():
    module = make_module(gate=True, rope=True)
    video, side = batch_of(RAGGED)
    other = make_module(seed=1, gate=True, rope=True)
    assert not torch.equal(other(video, side, prompt(5)), module(video, side, prompt(5)))
    other.load_state_dict(module.state_dict())
    assert torch.equal(other(video, side, prompt(5)), module(video, side, prompt(5)))
    assert torch.equal(copy.deepcopy(module)(video, side, prompt(5)), module(video, side, prompt(5)))


@pytest.mark.parametrize("alignment", ["timestamps", "index"])
@pytest.mark.parametrize("empty_frames", ["skip", "nearest", "interpolate"])
@pytest.mark.parametrize("rope", [False, True])
def test_a_ragged_batch_has_the_results_and_gradients_of_its_videos(alignment, empty_frames, rope):
    """Padding, and the other videos of a batch, change neither what a video gets nor what it teaches."""
    options = {"alignment": alignment, "empty_frames": empty_frames, "rope": rope}
    module = make_module(**options, width=16, gate=True, num_heads=2)
    video, side = batch_of(RAGGED)
    question = prompt(len(RAGGED))
    embeds = side.embeds_BKMC.clone().requires_grad_()
    weight = rand(*video.post_projector_BTSE.shape[:3], E, seed=9)
    out = module(video, SideTokens(embeds, side.valid_BK, side.times_BK), question)
    (out * weight).sum().backward()
    together = {name: p.grad.clone() for name, p in module.named_parameters() if p.grad is not None}
    module.zero_grad()
    for b, (queries, features, _, _) in enumerate(RAGGED):
        T, K = len(queries), len(features)
        one = VideoTokens(
            video.post_projector_BTSE[b : b + 1, :T], video.valid_BT[b : b + 1, :T], video.times_BT[b : b + 1, :T]
        )
        alone = features[None].clone().requires_grad_()
        times = None if side.times_BK is None else side.times_BK[b : b + 1, :K]
        asked = QuestionTokens(question.embeds_BLE[b : b + 1], question.valid_BL[b : b + 1])
        single = module(one, SideTokens(alone, side.valid_BK[b : b + 1, :K], times), asked)
        (single * weight[b : b + 1, :T]).sum().backward()
        torch.testing.assert_close(out[b : b + 1, :T], single, rtol=1e-10, atol=1e-10)
        assert (out[b, T:] == 0).all()
        if K:
            torch.testing.assert_close(embeds.grad[b : b + 1, :K], alone.grad, rtol=1e-9, atol=1e-9)
        assert (embeds.grad[b, K:] == 0).all()
    apart = {name: p.grad for name, p in module.named_parameters() if p.grad is not None}
    assert together.keys() == apart.keys()
    torch.testing.assert_close(together, apart, rtol=1e-9, atol=1e-9)
