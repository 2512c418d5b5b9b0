"""The `Trainer` of Hugging Face with a loss of this library and a teacher that is remembered.

    python examples/hf_trainer.py

Two methods are overridden: where batches come from, and what the loss is. The rest is the Trainer's.
"""

import sys

from transformers import ResNetConfig, ResNetForImageClassification, Trainer, TrainingArguments

import protege
from protege.losses import kd_loss
from protege.signals import TeacherCache

EPOCHS = 1 if "--tiny" in sys.argv else 20


def resnet(*widths: int) -> ResNetForImageClassification:
    """A small network of transformers for grey images and ten classes."""
    sizes = {"embedding_size": widths[0], "hidden_sizes": [*widths], "depths": [1] * len(widths)}
    return ResNetForImageClassification(ResNetConfig(num_channels=1, layer_type="basic", num_labels=10, **sizes))


class Distiller(Trainer):
    """A Trainer that learns from what a `TeacherCache` remembers."""

    def __init__(self, model, cache: TeacherCache, args: TrainingArguments) -> None:
        super().__init__(model, args)
        self.cache = cache

    def get_train_dataloader(self):
        """Batches of all samples; the Trainer says which epoch it is."""
        return self.cache.loader(self.args.train_batch_size, seed=self.args.seed)

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """``T²·KL`` of the student's logits and the teacher's, and cross-entropy with the labels."""
        outputs = model(pixel_values=self.cache.teacher.prepared(inputs.inputs), labels=inputs.labels)
        loss = 0.9 * kd_loss(outputs.logits, inputs.teacher.logits, temperature=4.0) + 0.1 * outputs.loss
        return (loss, outputs) if return_outputs else loss


def main() -> None:
    data = protege.load_data("digits")
    spec = protege.InputSpec(channels=1, mean=(0.3,), std=(0.35,))  # how both want their pixels
    teacher, student = protege.Model(resnet(32, 64), spec), protege.Model(resnet(8, 16), spec)
    protege.train(teacher, data, "runs/teacher", epochs=EPOCHS, overwrite=True)

    settings = {"num_train_epochs": EPOCHS, "per_device_train_batch_size": 64, "learning_rate": 3e-3}
    args = TrainingArguments("runs/trainer", save_strategy="no", report_to="none", **settings)
    Distiller(student.network, TeacherCache(teacher, data, views=4, device=args.device), args).train()
    print(protege.evaluate(student.eval(), data))


if __name__ == "__main__":
    main()
