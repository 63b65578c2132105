"""Cut tensors as `granularity` has them: which elements of a tensor a method takes its statistics over.

In:  a tensor's name and shape, the granularity and a config. Out: flat indices of each part, in flat order, or None where the tensor stays
whole. Heads are told by the names and the layout of transformers' Llama: outputs of q, k and v, inputs of o.
"""

import numpy as np

OUTPUTS, INPUTS = ("q_proj", "k_proj", "v_proj"), ("o_proj",)


def parts(name: str, shape: tuple[int, ...], granularity: str, config: dict) -> list[np.ndarray] | None:
    places = np.arange(np.prod(shape, dtype=int)).reshape(shape)
    if granularity == "row" and len(shape) > 1:
        return list(places.reshape(-1, shape[-1]))
    if granularity == "head":
        width = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
        module, kind = name.split(".")[-2:]
        if module in OUTPUTS:
            return [head.reshape(-1) for head in np.split(places, shape[0] // width)]
        if module in INPUTS and kind == "weight":
            return [head.reshape(-1) for head in np.split(places, shape[1] // width, axis=1)]
    return None
