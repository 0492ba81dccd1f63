"""Random audio models of the real architectures, small, with their feature extractors, as folders on disk."""

import torch
import transformers

RATE = 16000


def save_tiny(family, folder, whole=True, **changes):
    """Write a tiny model of a family; ``whole`` is the checkpoint as published, with the half that pave does not use."""
    torch.manual_seed(0)
    makers = {"clap": _clap, "ast": _ast, "whisper": _whisper, "speech": _speech, "pe_audio": _pe_audio}
    model, extractor = makers[family](whole, **changes)
    model.eval().save_pretrained(folder)
    extractor.save_pretrained(folder)
    return str(folder), model, extractor


def _clap(whole, fusion=False):
    """2 s windows: 201 frames stretched to 256, 32 steps; 2 frequency bins."""
    audio = {
        "window_size": 4,
        "num_mel_bins": 16,
        "spec_size": 64,
        "hidden_size": 16,
        "patch_size": 4,
        "patch_stride": [4, 4],
        "patch_embeds_hidden_size": 8,
        "depths": [1, 1],
        "num_attention_heads": [1, 2],
        "num_hidden_layers": 2,
        "projection_dim": 8,
        "num_classes": 2,
        "aff_block_r": 2,
        "enable_fusion": fusion,
        "fusion_type": "aff_2d" if fusion else None,
    }
    text = {
        "vocab_size": 20,
        "hidden_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 1,
        "intermediate_size": 8,
        "projection_dim": 8,
        "max_position_embeddings": 16,
    }
    extractor = transformers.ClapFeatureExtractor(
        feature_size=16,
        sampling_rate=RATE,
        hop_length=160,
        max_length_s=2,
        fft_window_size=512,
        frequency_max=8000,
        truncation="fusion" if fusion else "rand_trunc",
    )
    if whole:
        model = transformers.ClapModel(transformers.ClapConfig(audio_config=audio, text_config=text, projection_dim=8))
    else:
        model = transformers.ClapAudioModel(transformers.ClapAudioConfig(**audio))
    return model, extractor


def _ast(whole):
    """2.05 s windows: 204 frames, 50 steps of 40 ms; 3 frequency patches."""
    config = transformers.ASTConfig(
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        num_mel_bins=16,
        max_length=204,
        patch_size=8,
        frequency_stride=4,
        time_stride=4,
    )
    kind = transformers.ASTForAudioClassification if whole else transformers.ASTModel
    return kind(config), transformers.ASTFeatureExtractor(num_mel_bins=16, max_length=204)


def _whisper(whole):
    """2 s windows: 200 frames, 100 positions of 20 ms."""
    config = transformers.WhisperConfig(
        d_model=16,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=16,
        decoder_ffn_dim=16,
        vocab_size=40,
        num_mel_bins=8,
        max_source_positions=100,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        decoder_start_token_id=1,
    )
    kind = transformers.WhisperForConditionalGeneration if whole else transformers.WhisperModel
    return kind(config), transformers.WhisperFeatureExtractor(feature_size=8, chunk_length=2)


def _speech(whole, kind="WavLM", normalise=True, group=True):
    """The published convolutions: 400 samples every 320; ``whole`` is the checkpoint for speech recognition."""
    config = getattr(transformers, f"{kind}Config")(
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=16,
        conv_dim=(8,) * 7,
        num_conv_pos_embeddings=4,
        num_conv_pos_embedding_groups=2,
        feat_extract_norm="group" if group else "layer",
        do_stable_layer_norm=not group,
        vocab_size=12,
        num_buckets=8,
        max_bucket_distance=16,
    )
    model = getattr(transformers, f"{kind}ForCTC" if whole else f"{kind}Model")(config)
    return model, transformers.Wav2Vec2FeatureExtractor(do_normalize=normalise, return_attention_mask=not group)


def _pe_audio(whole):
    """Positions of 40 ms at 16 kHz."""
    dac = {"downsampling_ratios": [2, 8, 40], "encoder_hidden_size": 4, "codebook_dim": 8, "hidden_size": 16}
    audio = transformers.PeAudioEncoderConfig(
        dac_config=dac, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, head_dim=8
    )
    if whole:
        text = {
            "hidden_size": 16,
            "intermediate_size": 16,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "vocab_size": 20,
            "pad_token_id": 0,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "cls_token_id": 1,
            "sep_token_id": 2,
        }
        model = transformers.PeAudioModel(
            transformers.PeAudioConfig(text_config={"model_type": "modernbert", **text}, audio_config=audio.to_dict())
        )
    else:
        model = transformers.PeAudioEncoder(audio)
    with torch.no_grad():  # random kernels lean to one side and would move a click in time; trained ones have no reason to
        for module in (model.audio_encoder if whole else model).patch_embedder.modules():
            if isinstance(module, torch.nn.Conv1d):
                module.weight.copy_((module.weight + module.weight.flip(-1)) / 2)
    return model, transformers.PeAudioFeatureExtractor(sampling_rate=RATE, hop_length=640)
