"""The networks that are tried: a student and its teacher of each architecture, with random weights."""

from __future__ import annotations

from dataclasses import dataclass

CLASSES = {"image": 10, "segmentation": 5, "tokens": 4, "language": 200}  # outputs; of a language model its words


@dataclass(frozen=True)
class Row:
    """``student`` and ``teacher`` are specs of `load_model`, or ``small:NAME`` and ``big:NAME`` of `build`."""

    name: str
    student: str
    teacher: str
    size: int = 64
    popular: bool = False
    kind: str = "image"


def timm(student: str, teacher: str = "", size: int = 64, popular: bool = False, query: str = "", big: str = "") -> Row:
    teacher = f"timm:{teacher or student}{big or query}"
    return Row(student, f"timm:{student}{query}", teacher, size, popular)


def vision(student: str, teacher: str = "", popular: bool = False, query: str = "") -> Row:
    specs = (f"torchvision.models:{name}?num_classes=10{query}" for name in (student, teacher or student))
    return Row(f"tv/{student}", *specs, popular=popular)


def smp(name: str, encoder: str, teacher: str = "resnet34", popular: bool = False) -> Row:
    specs = (f"smp:{name}?encoder_name={one}" for one in (encoder, teacher))
    return Row(f"smp/{name}-{encoder}", *specs, popular=popular, kind="segmentation")


def made(name: str, kind: str = "image", size: int = 64, popular: bool = False) -> Row:
    """One that `build` makes from a small and a larger configuration."""
    return Row(name, f"small:{name}", f"big:{name}", size, popular, kind)


POPULAR = True
SMALL = "?img_size=64"
BEIT = SMALL + "&embed_dim={}&depth={}&num_heads=3"

ROWS = [
    timm("resnet18", "resnet34", popular=POPULAR),
    timm("resnet50", "resnet101", popular=POPULAR),
    timm("resnext50_32x4d", "resnext101_32x4d"),
    timm("seresnet18", "seresnet34"),
    timm("wide_resnet50_2", "resnet101"),
    timm("res2net50_26w_4s", "res2net101_26w_4s"),
    timm("resnest14d", "resnest26d"),
    timm("skresnet18", "skresnet34"),
    timm("regnetx_002", "regnetx_004"),
    timm("regnety_002", "regnety_004", popular=POPULAR),
    timm("densenet121", "densenet169", popular=POPULAR),
    timm("vgg16_bn", "vgg19_bn", popular=POPULAR, query="?mlp_ratio=0.0625"),
    timm("mobilenetv2_100", "mobilenetv2_140", popular=POPULAR),
    timm("mobilenetv3_small_100", "mobilenetv3_large_100", popular=POPULAR),
    timm("mobilenetv3_large_100", "efficientnet_b0", popular=POPULAR),
    timm("mobilenetv4_conv_small", "mobilenetv4_conv_medium", popular=POPULAR),
    timm("mobilenetv4_hybrid_medium"),
    timm("mnasnet_100", "mnasnet_140"),
    timm("efficientnet_b0", "efficientnet_b1", popular=POPULAR),
    timm("efficientnet_lite0", "efficientnet_lite1"),
    timm("tf_efficientnet_b0", "tf_efficientnet_b1", popular=POPULAR),
    timm("tf_efficientnetv2_b0", "tf_efficientnetv2_b1", popular=POPULAR),
    timm("ghostnet_100", "ghostnet_130"),
    timm("fbnetc_100", "mnasnet_140"),
    timm("hardcorenas_a", "hardcorenas_f"),
    timm("mixnet_s", "mixnet_m"),
    timm("lcnet_050", "lcnet_100"),
    timm("tinynet_c", "tinynet_a"),
    timm("rexnet_100", "rexnet_130"),
    timm("convnext_atto", "convnext_nano", popular=POPULAR),
    timm("convnextv2_atto", "convnextv2_nano", popular=POPULAR),
    timm("hrnet_w18_small", "hrnet_w18_small_v2"),
    timm("ese_vovnet19b_dw", "ese_vovnet39b"),
    timm("cspresnet50", "cspresnext50"),
    timm("darknet53"),
    timm("dla34", "dla60"),
    timm("dpn48b", "dpn68"),
    timm("hgnetv2_b0", "hgnetv2_b1"),
    timm("repvgg_a0", "repvgg_a1"),
    timm("mobileone_s0", "mobileone_s1"),
    timm("fastvit_t8", "fastvit_t12"),
    timm("repvit_m0_9", "repvit_m1_0"),
    timm("starnet_s1", "starnet_s2"),
    timm("efficientvit_b0", "efficientvit_b1"),
    timm("edgenext_xx_small", "edgenext_x_small"),
    timm("vit_tiny_patch16_224", "vit_small_patch16_224", popular=POPULAR, query=SMALL),
    timm("deit_tiny_distilled_patch16_224", "deit_small_distilled_patch16_224", popular=POPULAR, query=SMALL),
    timm(
        "swin_tiny_patch4_window7_224",
        "swin_small_patch4_window7_224",
        size=128,
        popular=POPULAR,
        query="?img_size=128&window_size=4",
    ),
    timm("swinv2_tiny_window8_256", size=128, query="?img_size=128&window_size=4&embed_dim=48"),
    timm("levit_128s", "levit_128", query=SMALL),
    timm("maxvit_rmlp_pico_rw_256", query=SMALL),
    timm("coatnet_nano_rw_224", query=SMALL),
    timm("davit_tiny"),
    timm("xcit_nano_12_p16_224", "xcit_tiny_12_p16_224", query=SMALL),
    timm("mixer_s16_224", "mixer_b16_224", query=SMALL),
    timm("resmlp_12_224", query=SMALL),
    timm("poolformer_s12", "poolformer_s24"),
    timm("efficientformer_l1", "efficientformer_l3", size=224),
    timm("pvt_v2_b0", "pvt_v2_b1", popular=POPULAR),
    timm("eca_nfnet_l0", "eca_nfnet_l1"),
    timm("resnetv2_50x1_bit", popular=POPULAR),
    timm("resnetv2_50", "resnetv2_101"),
    timm("beit_base_patch16_224", query=BEIT.format(96, 4), big=BEIT.format(192, 6)),
    timm("eva02_tiny_patch14_224", size=56, query="?img_size=56&depth=4"),
    timm("mobilevit_xxs", "mobilevit_xs", popular=POPULAR),
    timm("mobilevitv2_050", "mobilevitv2_075"),
    vision("resnet18", "resnet34", popular=POPULAR),
    vision("mobilenet_v2", popular=POPULAR),
    vision("mobilenet_v3_small", "mobilenet_v3_large", popular=POPULAR),
    vision("efficientnet_b0", "efficientnet_b1", popular=POPULAR),
    vision("regnet_y_400mf", "regnet_y_800mf"),
    vision("googlenet", query="&aux_logits=false&init_weights=false"),
    vision("shufflenet_v2_x0_5", "shufflenet_v2_x1_0", popular=POPULAR),
    vision("squeezenet1_1", "squeezenet1_0"),
    vision("alexnet"),
    vision("convnext_tiny", "convnext_small", popular=POPULAR),
    vision("swin_t", "swin_s", popular=POPULAR),
    made("tv/vit_b_16 (small)", popular=POPULAR),
    made("tv/deeplabv3_mobilenet_v3_large", "segmentation"),
    made("tv/lraspp_mobilenet_v3_large", "segmentation"),
    smp("unet", "resnet18", popular=POPULAR),
    smp("unet", "mobilenet_v2", popular=POPULAR),
    smp("fpn", "resnet18"),
    smp("deeplabv3plus", "mobilenet_v2", popular=POPULAR),
    smp("manet", "resnet18"),
    smp("unet", "timm-efficientnet-b0", "timm-efficientnet-b1", popular=POPULAR),
    smp("segformer", "mit_b0", "mit_b1"),
    made("hf/ViTForImageClassification", popular=POPULAR),
    made("hf/ResNetForImageClassification"),
    made("hf/ConvNextForImageClassification"),
    made("hf/SwinForImageClassification"),
    made("hf/Dinov2ForImageClassification", size=56),
    made("hf/MobileViTForImageClassification"),
    made("hf/SegformerForSemanticSegmentation", "segmentation", popular=POPULAR),
    made("hf/GPT2LMHeadModel", "language", popular=POPULAR),
    made("hf/LlamaForCausalLM", "language", popular=POPULAR),
    made("hf/Qwen2ForCausalLM", "language"),
    made("hf/OPTForCausalLM", "language"),
    made("hf/MistralForCausalLM", "language"),
    made("hf/GPTNeoXForCausalLM", "language"),
    made("hf/PhiForCausalLM", "language"),
    made("hf/BertForSequenceClassification", "tokens", popular=POPULAR),
    made("hf/DistilBertForSequenceClassification", "tokens", popular=POPULAR),
    made("hf/RobertaForSequenceClassification", "tokens"),
    made("hf/AlbertForSequenceClassification", "tokens"),
]
