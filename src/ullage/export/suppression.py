"""Non-maximum suppression appended to an ONNX graph.

Shape letters: B batch, A anchors, K classes, S selected boxes over all images, D = max_det rows an image.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ullage.runtime.extras import import_extra
from ullage.runtime.outputs import Suppression


def append_suppression(model: Any, suppression: Suppression, *, classes: int, batch: int | None) -> None:
    """Replace the outputs ``boxes`` and ``scores`` by ``detections`` (B, D, 6).

    As ``predict`` does it: a box keeps its best class, and only boxes of one class suppress each other. The rows are
    put in order by scattering what was kept over the anchors again and taking the D best, which needs no loop over
    the images and no shape that depends on what is found.

    Args:
        model: An ``onnx.ModelProto``; changed in place.
        suppression: Thresholds.
        classes: K.
        batch: Images a pass; None when that is open.
    """
    onnx = import_extra("onnx", needed_for="nms=True")
    graph, make = model.graph, onnx.helper.make_node

    def constant(name: str, value: Any, dtype: type) -> None:
        graph.initializer.append(onnx.numpy_helper.from_array(np.asarray(value, dtype), name))

    constant("nms_classes", np.arange(classes).reshape(1, 1, -1), np.int64)
    constant("nms_zero", 0, np.float32)
    constant("nms_limit", [suppression.max_det], np.int64)
    constant("nms_iou", [suppression.iou], np.float32)
    constant("nms_conf", [suppression.conf], np.float32)
    constant("nms_image_and_box", [0, 2], np.int64)
    constant("nms_last_axis", [2], np.int64)
    constant("nms_spare", [0, 0, 0, suppression.max_det], np.int64)
    constant("nms_one", 1, np.int64)
    constant("nms_four", [1, 1, 4], np.int64)
    nodes = [
        make("ArgMax", ["scores"], ["nms_ids_BA1"], axis=2, keepdims=1),
        make("ReduceMax", ["scores"], ["nms_best_BA"], axes=[2], keepdims=0),
        make("Equal", ["nms_ids_BA1", "nms_classes"], ["nms_is_best_BAK"]),
        make("Where", ["nms_is_best_BAK", "scores", "nms_zero"], ["nms_masked_BAK"]),
        make("Transpose", ["nms_masked_BAK"], ["nms_masked_BKA"], perm=[0, 2, 1]),
        make(
            "NonMaxSuppression",
            ["boxes", "nms_masked_BKA", "nms_limit", "nms_iou", "nms_conf"],
            ["nms_selected_S3"],
        ),
        make("Gather", ["nms_selected_S3", "nms_image_and_box"], ["nms_places_S2"], axis=1),
        make("GatherND", ["nms_best_BA", "nms_places_S2"], ["nms_kept_S"]),
        make("Mul", ["nms_best_BA", "nms_zero"], ["nms_nothing_BA"]),
        make("ScatterND", ["nms_nothing_BA", "nms_places_S2", "nms_kept_S"], ["nms_kept_BA"]),
        # Small inputs have fewer anchors than rows: zeros behind the last anchor fill up.
        make("Pad", ["nms_kept_BA", "nms_spare"], ["nms_padded"]),
        make("TopK", ["nms_padded", "nms_limit"], ["nms_scores_BD", "nms_rows_BD"], axis=1),
        make("Shape", ["nms_best_BA"], ["nms_size"]),
        make("Gather", ["nms_size", "nms_one"], ["nms_anchors"]),
        make("Sub", ["nms_anchors", "nms_one"], ["nms_last"]),
        make("Min", ["nms_rows_BD", "nms_last"], ["nms_inside_BD"]),
        make("Unsqueeze", ["nms_inside_BD", "nms_last_axis"], ["nms_inside_BD1"]),
        make("Tile", ["nms_inside_BD1", "nms_four"], ["nms_inside_BD4"]),
        make("GatherElements", ["boxes", "nms_inside_BD4"], ["nms_boxes_BD4"], axis=1),
        make("GatherElements", ["nms_ids_BA1", "nms_inside_BD1"], ["nms_ids_BD1"], axis=1),
        make("Cast", ["nms_ids_BD1"], ["nms_classes_BD1"], to=onnx.TensorProto.FLOAT),
        make("Unsqueeze", ["nms_scores_BD", "nms_last_axis"], ["nms_scores_BD1"]),
        make("Concat", ["nms_boxes_BD4", "nms_scores_BD1", "nms_classes_BD1"], ["nms_all_BD6"], axis=2),
        make("Greater", ["nms_scores_BD1", "nms_zero"], ["nms_found_BD1"]),
        make("Where", ["nms_found_BD1", "nms_all_BD6", "nms_zero"], ["detections"]),
    ]
    graph.node.extend(nodes)
    del graph.output[:]
    shape = ["batch" if batch is None else batch, suppression.max_det, 6]
    graph.output.append(onnx.helper.make_tensor_value_info("detections", onnx.TensorProto.FLOAT, shape))
