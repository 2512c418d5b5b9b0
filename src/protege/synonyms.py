"""Other names of methods, settings and their values: what the field's papers and libraries call them."""

from __future__ import annotations

from collections.abc import Mapping


def _names(**others: str) -> dict[str, str]:
    return {other: name for name, words in others.items() for other in words.split()}


METHOD_NAMES = _names(
    kd="hinton hintonkd response responsebased logits logit vanillakd softtargets softlabels distillation kl kldiv",
    none="scratch baseline vanilla labels label ce crossentropy supervised plain nodistillation",
    skd="stagewise stagewisekd stages",
    fskd="fewsample fewsamples fewshot fewsamplekd",
    fitnets="hints hint",
    at="attention attentiontransfer",
    gpd="gap gappreserving dynamic",
    fsp="flow",
)
SETTING_NAMES = _names(
    lr="learningrate rate",
    batch_size="batch bs batches trainbatchsize perdevicetrainbatchsize",
    epochs="numepochs nepochs numtrainepochs maxepochs",
    weight_decay="wd l2 decay",
    temperature="t temp",
    weight="lambda kdweight distillweight",
    samples="nsamples numsamples subset limit",
    fraction="share percent portion",
    out="output outdir outputdir savedir dir",
    student="model net network",
    teacher="teachermodel from",
    data="dataset datapath datadir path root",
    classes="classnames names labelnames",
    image_size="imgsize size resolution imgsz",
    workers="numworkers nworkers jobs",
    optimizer="optim opt",
    schedule="scheduler lrscheduler lrschedule",
    accumulate="gradientaccumulationsteps accumulationsteps gradaccum accumulatesteps",
    clip="gradclip clipgrad maxgradnorm gradientclipval",
    precision="amp fp16 bf16 dtype mixedprecision",
    patience="earlystopping earlystop",
    seed="randomseed randomstate",
    validation="valsplit validationsplit val valfraction",
    augment="augmentation augmentations aug",
    log_with="wandb tensorboard logger tracker reportto",
    overwrite="force",
    cache="cachedir",
)
COMMAND_NAMES = _names(
    distill="distil teach kd",
    train="fit learn",
    evaluate="eval test validate",
    shrink="prune compress",
    diagnose="diagnosis analyze analyse inspect",
    study="sweep grid search benchmark",
    export="onnx convert quantize",
    report="html show",
)
VALUE_NAMES: Mapping[str, Mapping[str, str]] = {
    "target": _names(
        kd="hinton logits soft softtargets softlabels response",
        dkd="decoupled decoupledkd",
        ls="labelsmoothing smoothing",
    ),
    "optimizer": _names(adamw="adam", sgd="momentum nesterov"),
    "schedule": _names(
        cosine="cos cosineannealing cosineannealinglr", onecycle="1cycle onecyclelr", constant="none fixed"
    ),
    "precision": _names(bf16="bfloat16 amp mixed", fp32="float32 float full single 32"),
    "select": _names(best="early", last="final latest"),
}
