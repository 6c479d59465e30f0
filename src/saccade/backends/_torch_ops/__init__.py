"""From an ONNX graph to a torch.nn.Module with static shapes; imported only once torch is there.

values        what a rule sees: a node, its operands, and the table of rules
lowering      emits calls into a torch.fx graph, folds what does not depend on the picture
precision     which nodes must stay in FP32
program       ONNX file -> checked nodes -> torch.fx.GraphModule
others        the rules, by kind of operator
"""
