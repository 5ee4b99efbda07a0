"""InterLUDE as one trains it without this package, a file each: `reference`, as released, and `strong`, the best
that plain PyTorch and torchvision offer. Neither imports anything of ours; both are trained and measured alike:

    recipe = reference.build(images, labels, labeled, unlabeled, classes=10, mean=..., std=..., device="cuda")
    loss = recipe.step()    # batch, forward, loss, backward, update: one after the other, each a method too
    recipe.close()
"""
