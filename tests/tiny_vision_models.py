"""Random vision models of the real architectures, small, with their processors, as folders on disk."""

import torch
import transformers as tf

SIDE, PATCH, WIDTH = 32, 8, 16


def _vision(**more):
    return {
        "hidden_size": WIDTH,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": SIDE,
        "patch_size": PATCH,
        **more,
    }


def _text():
    return {
        "hidden_size": 8,
        "intermediate_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 1,
        "vocab_size": 20,
        "max_position_embeddings": 8,
        "bos_token_id": 0,
        "eos_token_id": 1,
        "pad_token_id": 2,
    }


def _make(family):
    square = {"size": {"height": SIDE, "width": SIDE}}
    cropped = {"size": {"shortest_edge": SIDE + 8}, "crop_size": {"height": SIDE, "width": SIDE}}
    if family == "clip":
        config = tf.CLIPConfig(vision_config=_vision(), text_config=_text(), projection_dim=8)
        return tf.CLIPModel(config), tf.CLIPImageProcessor(**cropped)
    if family == "siglip":
        config = tf.SiglipConfig(vision_config=_vision(), text_config=_text())
        return tf.SiglipModel(config), tf.SiglipImageProcessor(**square)
    if family == "siglip_vision":
        return tf.SiglipVisionModel(tf.SiglipVisionConfig(**_vision())), tf.SiglipImageProcessor(**square)
    if family == "dinov2":
        return tf.Dinov2Model(tf.Dinov2Config(**_vision())), tf.BitImageProcessor(**cropped)
    if family == "dinov2_with_registers":
        config = tf.Dinov2WithRegistersConfig(**_vision(num_register_tokens=4))
        return tf.Dinov2WithRegistersModel(config), tf.BitImageProcessor(**cropped)
    if family == "dinov3":
        config = tf.DINOv3ViTConfig(**_vision(num_register_tokens=4))
        return tf.DINOv3ViTModel(config), tf.DINOv3ViTImageProcessor(**square)
    if family == "convnext":
        config = tf.ConvNextConfig(hidden_sizes=[8, 8, 8, WIDTH], depths=[1, 1, 1, 1], patch_size=4, image_size=128)
        return tf.ConvNextModel(config), tf.ConvNextImageProcessor(size={"shortest_edge": 128})
    if family == "vjepa2":
        config = tf.VJEPA2Config(
            patch_size=PATCH,
            crop_size=SIDE,
            frames_per_clip=8,
            tubelet_size=2,
            hidden_size=WIDTH * 3,
            num_attention_heads=2,
            num_hidden_layers=2,
            mlp_ratio=1.0,
            pred_hidden_size=24,
            pred_num_attention_heads=2,
            pred_num_hidden_layers=1,
            pred_num_mask_tokens=1,
        )
        return tf.VJEPA2Model(config), tf.VJEPA2VideoProcessor(crop_size=SIDE)
    config = tf.VideoMAEConfig(**_vision(num_frames=4))
    return tf.VideoMAEModel(config), tf.VideoMAEImageProcessor()


def save_tiny_vision(family, folder):
    """Write a tiny model of a family: (path, model)."""
    torch.manual_seed(0)
    model, processor = _make(family)
    model.eval().save_pretrained(folder)
    processor.save_pretrained(folder)
    return str(folder), model
