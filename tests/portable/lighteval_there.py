"""Run by a Python with lighteval and without this package: score by its Transformers model.

    python lighteval_there.py MODEL

Its command asks the Hub and GitHub before it looks at a model, so what the command calls is called.
Its cache of answers is left out: in 0.13 it can't read what it wrote.
"""

import math
import sys

from lighteval.models.transformers import transformers_model as theirs
from lighteval.tasks.requests import Doc, SamplingMethod

if __name__ == "__main__":
    config = theirs.TransformersModelConfig(
        model_name=sys.argv[1], trust_remote_code=True, device="cpu", dtype="float32"
    )
    model = theirs.TransformersModel(config)
    assert type(model.model).__module__.startswith("transformers_modules.")
    questions = [
        Doc(
            id=str(n), task_name="own|0", query="a text of" + " some" * n, gold_index=0,
            choices=[" some words", " words some"], sampling_methods=[SamplingMethod.LOGPROBS],
        )
        for n in range(4)
    ]  # fmt: skip
    answers = theirs.TransformersModel.loglikelihood.__wrapped__(model, questions)
    found = [value for answer in answers for value in answer.logprobs]
    assert len(set(found)) == 8
    assert all(math.isfinite(value) and value < 0 for value in found)
    print("works: 4 questions are scored by its Transformers model; its command needs the internet")
