import torch

from versatileffn.analysis.activations import saved_for_backward


class Cube(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x * x)
        return x**3

    @staticmethod
    def backward(ctx, grad):
        return 3 * grad * ctx.saved_tensors[0]


def test_storages_count_once_weights_not_at_all_and_custom_functions_too():
    weight, x = torch.ones(4, 4, requires_grad=True), torch.ones(3, 4)

    def run():
        hidden = x @ weight  # saves x: 12 values, and the weight
        view = hidden.view(4, 3)
        return Cube.apply(hidden) + hidden.sin() + view.sin().view(3, 4)  # 12, and hidden's 12 once

    saved = saved_for_backward(run, [weight])
    assert saved.values == 36
    assert saved.bytes == 36 * 4
