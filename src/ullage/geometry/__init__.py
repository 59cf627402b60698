"""The shared vocabulary: boxes, IoU, NMS, letterbox, targets and detections, as pure functions and small values."""
