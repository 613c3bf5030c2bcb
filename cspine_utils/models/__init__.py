"""Models that read a six-channel study tensor `b f c h w` and give one logit per target, `(b, 8)`.

Import them by name: ``from cspine_utils.models.vit3d import ViT3D``.
"""
