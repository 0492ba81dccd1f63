"""Vision models of transformers: the right tokens in the right places at the right times."""

import numpy as np
import pytest
import torch

from pave.config import EncoderConfig
from pave.side_channels import build_encoder
from pave.side_channels.frames import FrameEncoder, Frames
from pave.side_channels.vision_transformers import VisionTransformersEncoder
from tiny_families_more import tiny_llava_next_video
from tiny_models import tiny_llava_onevision, tiny_qwen2_5_vl
from tiny_vision_models import PATCH, SIDE, save_tiny_vision

IMAGE_FAMILIES = ("clip", "siglip", "siglip_vision", "dinov2", "dinov2_with_registers", "dinov3")
EXTRA = {"clip": 1, "siglip": 0, "siglip_vision": 0, "dinov2": 1, "dinov2_with_registers": 5, "dinov3": 5}
EMBEDDINGS = -3
"""With two layers: what goes into the first one, where a patch knows of itself only."""


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    made = {}

    def get(family):
        if family not in made:
            made[family] = save_tiny_vision(family, tmp_path_factory.mktemp(family))
        return made[family]

    return get


def noise(count, height=40, width=60, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, height, width, 3), dtype=np.uint8)


def encode(encoder, frames, times=None):
    times = np.arange(len(frames)) / 8 if times is None else times
    return encoder.encode([Frames(frames, times)])


@pytest.mark.parametrize("family", IMAGE_FAMILIES)
def test_features_are_the_pooled_patches_of_the_model_itself(family, models):
    path, model = models(family)
    encoder = VisionTransformersEncoder(path, grid=2)
    assert isinstance(encoder, FrameEncoder) and (encoder.width, encoder.tokens_per_step) == (16, 4)
    frames = noise(3, SIDE, SIDE)  # of the model's own size, so that nothing is resized
    processor = encoder._tower.processor
    mean, std = (torch.tensor(values).reshape(1, 3, 1, 1) for values in (processor.image_mean, processor.image_std))
    pixels = (torch.from_numpy(frames).permute(0, 3, 1, 2) / 255 - mean) / std
    with torch.no_grad():
        hidden = getattr(model, "vision_model", model)(pixels).last_hidden_state
    side = SIDE // PATCH
    patches = hidden[:, EXTRA[family] :].reshape(3, 2, side // 2, 2, side // 2, -1).mean((2, 4)).reshape(3, 4, -1)
    assert hidden.shape[1] == EXTRA[family] + side**2
    features = encode(encoder, frames)
    torch.testing.assert_close(features.features_KMC, patches, atol=2e-4, rtol=2e-4)
    assert features.times_K.tolist() == [0, 0.125, 0.25]


@pytest.mark.parametrize("family", IMAGE_FAMILIES)
def test_a_token_is_its_own_part_of_the_whole_picture(family, models):
    encoder = VisionTransformersEncoder(models(family)[0], layer=EMBEDDINGS)
    frames = noise(2)
    before = encode(encoder, frames).features_KMC
    for token, (y, x) in enumerate(((0, 0), (0, 59), (39, 0), (39, 59))):
        changed = frames.copy()
        changed[1, y, x] = 255 - changed[1, y, x]
        moved = (encode(encoder, changed).features_KMC - before).abs().amax(dim=2) > 1e-6
        assert moved.nonzero().tolist() == [[1, token]]


def test_a_model_that_crops_does_not_see_the_rim(models):
    frames = noise(1)
    changed = frames.copy()
    changed[:, :, 0] = 255
    for whole, same in ((False, True), (True, False)):
        encoder = VisionTransformersEncoder(models("clip")[0], whole_picture=whole)
        assert encoder.sees_whole_picture is whole
        assert torch.equal(encode(encoder, frames).features_KMC, encode(encoder, changed).features_KMC) is same


def test_a_convolutional_model_gives_its_maps(models):
    path, model = models("convnext")
    encoder = VisionTransformersEncoder(path, whole_picture=False)
    assert encode(encoder, noise(2)).features_KMC.shape == (2, 4, 16)
    with pytest.raises(ValueError, match=r"processor of .* refuses the pictures .*; try whole_picture: false"):
        VisionTransformersEncoder(path)


def test_chunks_and_pieces_change_nothing(models):
    encoder = VisionTransformersEncoder(models("dinov2")[0])
    frames, times = noise(21), np.arange(21) * 0.2
    whole = encode(encoder, frames, times)
    pieces = encoder.encode(Frames(frames[i : i + 5], times[i : i + 5]) for i in range(0, 21, 5))
    assert torch.equal(pieces.features_KMC, whole.features_KMC) and torch.equal(pieces.times_K, whole.times_K)
    encoder._tower.window = 4
    torch.testing.assert_close(encode(encoder, frames, times).features_KMC, whole.features_KMC, atol=1e-5, rtol=1e-5)


# --- towers of Video LLMs


@pytest.mark.parametrize("make", [tiny_llava_onevision, tiny_llava_next_video])
def test_a_video_llm_lends_its_tower(make, tmp_path):
    model, processor = make()
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    encoder = VisionTransformersEncoder(str(tmp_path), grid=2)
    side = model.config.vision_config.image_size
    frames = noise(3, side, side)
    pixels = processor.video_processor(
        videos=[torch.from_numpy(frames).permute(0, 3, 1, 2)], do_sample_frames=False, return_tensors="pt"
    )["pixel_values_videos"][0]
    with torch.no_grad():
        hidden = model.model.vision_tower(pixels).last_hidden_state
    cells = side // model.config.vision_config.patch_size
    hidden = hidden[:, hidden.shape[1] - cells**2 :].transpose(1, 2).unflatten(2, (cells, cells))
    expected = torch.nn.functional.adaptive_avg_pool2d(hidden, 2).flatten(2).transpose(1, 2)
    torch.testing.assert_close(encode(encoder, frames).features_KMC, expected, atol=1e-5, rtol=1e-5)


def test_the_embedded_base_is_known_by_name():
    encoder = VisionTransformersEncoder("playground", grid=3)
    assert (encoder.width, encoder.spec().model) == (96, "playground")


def test_a_tower_that_packs_its_patches_is_refused(tmp_path):
    model, processor = tiny_qwen2_5_vl()
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="only the SigLIP and CLIP vision towers can be used alone; that of .* is 'qwen2_5_vl"):
        VisionTransformersEncoder(str(tmp_path))


# --- V-JEPA 2


def test_tubelets_have_the_mean_time_of_their_frames(models):
    encoder = VisionTransformersEncoder(models("vjepa2")[0])
    times = np.array([0, 0.1, 0.4, 0.5, 1.0, 1.2, 1.3, 1.5, 2.0, 2.1, 3.0])
    features = encode(encoder, noise(11), times)
    assert features.features_KMC.shape == (6, 4, 48)
    np.testing.assert_allclose(features.times_K, [0.05, 0.45, 1.1, 1.4, 2.05, 3.0], atol=1e-12)


def test_a_clip_is_what_the_model_makes_of_it(models):
    path, model = models("vjepa2")
    encoder = VisionTransformersEncoder(path)
    frames = noise(11, SIDE, SIDE)
    processor = encoder._tower.processor
    mean, std = (torch.tensor(values).reshape(1, 3, 1, 1) for values in (processor.image_mean, processor.image_std))

    def direct(part):
        pixels = (torch.from_numpy(part).permute(0, 3, 1, 2) / 255 - mean) / std
        with torch.no_grad():
            hidden = model(pixels[None], skip_predictor=True).last_hidden_state[0]
        return hidden.reshape(len(part) // 2, 2, 2, 2, 2, -1).mean((2, 4)).reshape(len(part) // 2, 4, -1)

    filled = np.concatenate([frames[8:], frames[10:]])
    expected = torch.cat([direct(frames[:8]), direct(filled)])
    torch.testing.assert_close(encode(encoder, frames).features_KMC, expected, atol=2e-4, rtol=2e-4)


def test_a_tubelet_is_its_own_frames_and_place(models):
    encoder = VisionTransformersEncoder(models("vjepa2")[0], layer=EMBEDDINGS, clip_frames=4)
    frames = noise(10)
    before = encode(encoder, frames).features_KMC
    for frame, (token, (y, x)) in zip((0, 3, 6, 9), enumerate(((0, 0), (0, 59), (39, 0), (39, 59)))):
        changed = frames.copy()
        changed[frame, y, x] = 255 - changed[frame, y, x]
        moved = (encode(encoder, changed).features_KMC - before).abs().amax(dim=2) > 1e-6
        assert moved.nonzero().tolist() == [[frame // 2, token]]


# --- settings


def test_spec_builds_the_same_encoder(models):
    encoder = VisionTransformersEncoder(models("siglip")[0], fps=2, grid=4, layer=-2)
    again = build_encoder(EncoderConfig.from_dict(encoder.spec().to_dict()))
    assert again.spec() == encoder.spec()
    assert torch.equal(encode(again, noise(2)).features_KMC, encode(encoder, noise(2)).features_KMC)


def test_half_precision_gives_close_float32_features(models):
    path, _ = models("dinov2")
    full, half = (encode(VisionTransformersEncoder(path, dtype=d), noise(2)).features_KMC for d in ("float32", "bfloat16"))
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, full, atol=0.1, rtol=0.1)


@pytest.mark.parametrize(
    ("family", "settings", "words"),
    [
        ("clip", {"grid": 5}, "grid must be at most the 4 patches of a side, got 5"),
        ("clip", {"layer": -4}, "layer must be from -3 to -1"),
        ("clip", {"clip_frames": 8}, "clip_frames is for video models"),
        ("clip", {"dtype": "int8"}, "dtype must be one of float32"),
        ("vjepa2", {"clip_frames": 5}, "a multiple of the 2 frames of a tubelet, got 5"),
        ("videomae", {}, "a video model of the type 'videomae'; of those only 'vjepa2'"),
    ],
)
def test_bad_settings_are_named(family, settings, words, models):
    with pytest.raises(ValueError, match=words):
        VisionTransformersEncoder(models(family)[0], **settings)


def test_missing_weights_are_not_drawn_at_random(models, tmp_path):
    from safetensors.torch import load_file, save_file

    path, _ = save_tiny_vision("dinov2", tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    lost = next(key for key in tensors if "layer.1" in key)
    save_file({key: value for key, value in tensors.items() if key != lost}, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match="lacks 1 weights of the encoder, among them"):
        VisionTransformersEncoder(path)
    with pytest.raises(ValueError, match="cannot be loaded"):
        VisionTransformersEncoder(str(tmp_path / "nothing"))
