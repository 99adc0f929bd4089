"""Examples for the OpenAPI description, by the name of the body, or by operation and media type where it has none."""

from typing import Any, Final

from worker.jobs.spec import Spec

_JOB, _OTHER = "18eb6e79fb8ad69c6c8a2500", "18eb6e79fc80f3a6d22614e5"
_FILE = "b1ed103ad34126c55f208b32d6544e250af11807cdcd9534d6e3ed1cc17737b2"
_WEIGHTS = "951db82d83c3d272ef207b4dd310b48b44718f303385747e954e0b04f091e6c2"
_DATASET = "0d0bd5f3a1a1e1b7c6f5a6b0c2b7ad8b3f9c2f4c7d6e5a4b39281706f5e4d3c2"
_CREATED, _STARTED, _ENDED = "2026-11-25T10:00:00.000000Z", "2026-11-25T10:00:00.120000Z", "2026-11-25T10:00:31.500000Z"
_SPEC = Spec().model_dump(mode="json")

_PROGRESS: dict[str, Any] = {
    "epoch": 5,
    "batch": 938,
    "batches": 938,
    "samples_per_second": 61200.5,
    "eta_seconds": None,
}
_SUMMARY: dict[str, Any] = {
    "id": _JOB,
    "name": "tutorial",
    "labels": {"team": "a"},
    "status": "succeeded",
    "phase": None,
    "progress": _PROGRESS,
    "attempt": 1,
    "error": None,
    "priority": 0,
    "sweep": None,
    "trial": None,
    "owner": "",
    "created_at": _CREATED,
    "started_at": _STARTED,
    "finished_at": _ENDED,
}
_ATTEMPT: dict[str, Any] = {
    "number": 1,
    "started_at": _STARTED,
    "first_batch_at": "2026-11-25T10:00:00.240000Z",
    "ended_at": _ENDED,
    "outcome": "succeeded",
    "resumed_from": None,
    "resumed_batch": None,
    "resume": None,
    "resume_reason": None,
    "error": None,
}
_METRICS: dict[str, Any] = {
    "seq": 1,
    "epoch": 1,
    "train_loss": 2.2512,
    "test_loss": 2.1503,
    "test_accuracy": 0.4412,
    "test_top5_accuracy": 0.8831,
    "test_f1": 0.3904,
    "test_mae": None,
    "test_r2": None,
    "learning_rate": 0.001,
    "samples_per_second": 61200.5,
    "train_seconds": 0.98,
    "test_seconds": 0.11,
    "gradient_norm": 0.52,
    "peak_memory_bytes": 412_000_000,
    "attempt": 1,
    "recorded_at": "2026-11-25T10:00:06.300000Z",
    "non_finite": None,
}
_CARD: dict[str, Any] = {
    "name": "shoes",
    "task": "classification",
    "classes": ["boot", "sandal"],
    "targets": [],
    "channels": 3,
    "height": 64,
    "width": 64,
    "train_count": 800,
    "test_count": 200,
    "train_counts": [410, 390],
    "test_counts": [98, 102],
    "mean": [0.51, 0.48, 0.45],
    "std": [0.22, 0.21, 0.23],
    "target_mean": [],
    "target_std": [],
    "findings": [],
    "ignored": {},
    "sha256": _DATASET,
}
_DATASET_SUMMARY: dict[str, Any] = {
    "name": "shoes",
    "version": 2,
    "built_in": False,
    "description": None,
    "status": "ready",
    "progress": None,
    "task": "classification",
    "classes": ["boot", "sandal"],
    "channels": 3,
    "height": 64,
    "width": 64,
    "train_count": 800,
    "test_count": 200,
    "sha256": _DATASET,
    "error": None,
    "owner": "",
    "created_at": _CREATED,
    "finished_at": _STARTED,
    "url": "/datasets/shoes?version=2",
}
_ALIAS: dict[str, Any] = {
    "name": "default",
    "job": _JOB,
    "checkpoint": {"epoch": 5, "sha256": _FILE},
    "version": 2,
    "previous": {"job": _OTHER, "epoch": 5},
    "owner": "",
    "created_at": _CREATED,
    "updated_at": _ENDED,
    "url": "/models/default",
}
_GUESS: dict[str, Any] = {"class_index": 9, "label": "Ankle boot", "probability": 0.93}
_PREDICTED: dict[str, Any] = {
    "checkpoint": {"epoch": 5, "sha256": _FILE},
    "predictions": [{**_GUESS, "top": [_GUESS], "warnings": [], "fixed": []}],
}
_DELIVERY: dict[str, Any] = {
    "id": "18eb6e7cc0130325dac96782",
    "event": "job.succeeded",
    "hook": 0,
    "origin": "https://hooks.example.com",
    "status": "delivered",
    "tries": 1,
    "created_at": _ENDED,
    "next_at": None,
    "settled_at": _ENDED,
    "error": None,
}
_PIXELS: dict[str, Any] = {"name": "pixels", "datatype": "FP32", "shape": [-1, 1, 28, 28]}
_LOGITS: dict[str, Any] = {"name": "logits", "datatype": "FP32", "shape": [-1, 10]}
_READY: dict[str, Any] = {"ready": True, "detail": "The database answers."}
_ANSWERED: dict[str, Any] = {
    "index": 17,
    "label": "sandal",
    "predicted": "boot",
    "probability": 0.97,
    "url": f"/jobs/{_JOB}/report/pictures/17.png",
}
_COMPARED: dict[str, Any] = {
    "id": _JOB,
    "name": "tutorial",
    "status": "succeeded",
    "epoch": 5,
    "accuracy": 0.96,
    "metrics": {"test_loss": {"best": 0.21, "best_epoch": 4, "last": 0.22}},
}
_OF_CLASS: dict[str, Any] = {"support": 98, "recall": 0.92, "recall_change": 0.0, "f1": 0.91, "f1_change": 0.0}
_SWEEP: Final = "18eb777d067481165fe33af2"
_PARAMETERS: dict[str, Any] = {"optimizer.lr": {"values": [0.1, 0.01]}, "seed": {"values": [0, 1]}}
_SWEEP_FORM: dict[str, Any] = {
    "name": "rates",
    "spec": {"epochs": 2, "model": {"name": "mlp", "hidden": [512, 512]}},
    "parameters": _PARAMETERS,
    "search": {"name": "grid"},
    "metric": "test_accuracy",
}
_TRIAL: dict[str, Any] = {
    "trial": 1,
    "job": _JOB,
    "status": "succeeded",
    "parameters": {"optimizer.lr": 0.1, "seed": 0},
    "epoch": 2,
    "epochs": 2,
    "value": 0.8012,
    "last": 0.8012,
    "progress": 1.0,
}
_SWEEP_SUMMARY: dict[str, Any] = {
    "id": _SWEEP,
    "owner": "",
    "name": "rates",
    "status": "running",
    "search": "grid",
    "metric": "test_accuracy",
    "rung": 0,
    "counts": {"succeeded": 1, "queued": 3},
    "created_at": _CREATED,
    "finished_at": None,
}

BODIES: Final[dict[str, Any]] = {
    "Spec": {"name": "tutorial", "dataset": {"name": "fashion-mnist"}, "epochs": 5, "batch_size": 64},
    "JobBody": _SUMMARY
    | {
        "spec": _SPEC,
        "queue": None,
        "threads": 2,
        "resume": None,
        "resume_reason": None,
        "attempts": [_ATTEMPT],
        "transitions": [
            {"status": "queued", "at": _CREATED, "reason": None},
            {"status": "running", "at": _STARTED, "reason": None},
            {"status": "succeeded", "at": _ENDED, "reason": None},
        ],
        "events": [],
        "provenance": {"seed": 0, "device": "cpu", "threads": 2, "versions": {"torch": "2.15.0"}},
    },
    "JobPage": {"data": [_SUMMARY], "has_more": True, "next_cursor": _JOB},
    "Plan": {
        "spec": _SPEC,
        "parameters": 669_706,
        "steps_per_epoch": 938,
        "steps": 4690,
        "micro_batch": 64,
        "checkpoint_bytes": 2_680_000,
        "memory": {
            "weights_bytes": 2_678_824,
            "gradients_bytes": 2_678_824,
            "optimizer_bytes": 0,
            "activations_bytes": 1_050_000,
            "batch_bytes": 250_000,
            "peak_bytes": 6_700_000,
        },
        "available_bytes": 8_000_000_000,
        "fitting_micro_batch": 60_000,
    },
    "MetricsPage": {"data": [_METRICS], "next_since": 1, "status": "running", "terminal": False},
    "LogsPage": {"attempt": 1, "data": ['{"event": "epoch_done", "epoch": 1}'], "next_since": 36, "terminal": False},
    "Report": {
        "epoch": 5,
        "accuracy": 0.96,
        "macro_precision": 0.96,
        "macro_recall": 0.96,
        "macro_f1": 0.96,
        "classes": [
            {"label": "boot", "support": 98, "precision": 0.95, "recall": 0.97, "f1": 0.96},
            {"label": "sandal", "support": 102, "precision": 0.97, "recall": 0.95, "f1": 0.96},
        ],
        "confusion_matrix": [[95, 3], [5, 97]],
        "most_confused": [{"label": "sandal", "predicted": "boot", "count": 5}],
    },
    "Parity": {
        "pictures": 10_000,
        "epoch": 5,
        "sha256": _FILE,
        "largest_difference": 4.8e-07,
        "largest_output": 11.2,
        "tolerance": 0.0001,
        "agree": 1.0,
        "accuracy": 0.6451,
        "loop_accuracy": 0.6451,
        "recorded_accuracy": 0.6451,
        "mae": None,
        "loop_mae": None,
        "recorded_mae": None,
        "passed": True,
        "precision": "fp32",
        "device": "cpu",
        "seconds": 1.4,
        "made_at": "2026-11-25T10:00:33.000000Z",
    },
    "CheckpointList": {
        "data": [
            {
                "epoch": 1,
                "sha256": _FILE,
                "weights_sha256": _WEIGHTS,
                "bytes": 2_680_312,
                "is_best": True,
                "is_last": True,
                "metrics": _METRICS,
                "url": f"/jobs/{_JOB}/checkpoints/1",
                "created_at": "2026-11-25T10:00:06.290000Z",
            }
        ]
    },
    "DeliveryList": {"data": [_DELIVERY]},
    "NoFields": {},
    "Cancel": {"mode": "save"},
    "Retry": {"apply_suggestion": True},
    "Extend": {"epochs": 5},
    "AliasTarget": {"job": _JOB, "checkpoint": "best"},
    "AliasBody": _ALIAS,
    "AliasList": {"data": [_ALIAS]},
    "BuiltIn": {"name": "mnist"},
    "Form": {"name": "shoes", "image_size": 64},
    "DatasetBody": _DATASET_SUMMARY
    | {"form": {"name": "shoes", "image_size": [64, 64]}, "card": _CARD, "versions": [2, 1]},
    "DatasetList": {"data": [_DATASET_SUMMARY]},
    "PredictBody": {"job": _JOB, **_PREDICTED},
    "EpochsBody": {"job": _JOB, "epochs": [_PREDICTED]},
    "Readiness": {"ready": True, "parts": {"database": _READY, "worker": _READY, "disk": _READY, "predictor": _READY}},
    "ServerMetadata": {"name": "epochd", "version": "0.1.0", "extensions": ["binary_tensor_data", "classification"]},
    "ModelMetadata": {
        "name": "default",
        "versions": ["1", "5"],
        "platform": "pytorch",
        "inputs": [_PIXELS],
        "outputs": [_LOGITS],
    },
    "ModelReady": {"name": "default", "ready": True},
    "InferRequestBody": {"inputs": [_PIXELS | {"shape": [1, 1, 2, 2], "data": [0.0, 0.5, 0.5, 1.0]}]},
    "InferBody": {
        "model_name": "default",
        "model_version": "5",
        "outputs": [_LOGITS | {"shape": [1, 2], "data": [0.3, -0.1]}],
    },
    "AnsweredPage": {"epoch": 5, "total": 5, "data": [_ANSWERED], "note": None},
    "PicturesPage": {
        "name": "shoes",
        "version": 2,
        "split": "test",
        "total": 98,
        "data": [
            {"index": 3, "label": "boot", "targets": None, "url": "/datasets/shoes/pictures/test/3.png?version=2"}
        ],
    },
    "ComparisonBody": {
        "jobs": [_COMPARED | {"id": _OTHER, "accuracy": 0.915}, _COMPARED],
        "spec": [{"pointer": "/optimizer/lr", "values": {_OTHER: 0.001, _JOB: 0.01}}],
        "provenance": [{"pointer": "/threads", "values": {_OTHER: 1, _JOB: 2}}],
        "classes": [{"label": "boot", "jobs": {_OTHER: _OF_CLASS, _JOB: _OF_CLASS | {"f1": 0.97, "f1_change": 0.06}}}],
        "pairs": [
            {
                "first": _OTHER,
                "second": _JOB,
                "same_pictures": True,
                "counts": {"both_right": 180, "only_first": 3, "only_second": 12, "both_wrong": 5},
                "p": 0.03515625,
                "better": _JOB,
                "verdict": f"Job {_JOB} is better: 3 of 200 test pictures only the first got right, and 12 only the "
                "second (p = 0.035).",
                "flipped": [
                    {
                        "index": 17,
                        "label": "sandal",
                        "first": {"predicted": "boot", "probability": 0.62},
                        "second": {"predicted": "sandal", "probability": 0.81},
                        "url": f"/jobs/{_OTHER}/report/pictures/17.png",
                    }
                ],
            }
        ],
    },
    "SweepForm": _SWEEP_FORM,
    "SweepBody": _SWEEP_SUMMARY | {"form": _SWEEP_FORM | {"spec": _SPEC}, "best": _TRIAL, "trials": [_TRIAL]},
    "SweepPage": {"data": [_SWEEP_SUMMARY], "has_more": False, "next_cursor": None},
    "SweepPlan": {
        "trials": [{"trial": 1, "parameters": {"optimizer.lr": 0.1, "seed": 0}}],
        "rungs": [{"trials": 27, "epochs": 1}, {"trials": 9, "epochs": 3}],
    },
}

_NDJSON: Final = f"""{{"job": "{_JOB}", "epoch": 5, "total": 1}}
{{"number": 1, "of": "boot/1.png", "class_index": 0, "label": "boot", "probability": 0.98}}
{{"done": 1, "failed": 0, "seconds": 0.02}}
"""
OPERATIONS: Final[dict[str, dict[str, Any]]] = {
    "healthz": {"application/json": {"status": "ok"}},
    "v2_live": {"application/json": {"live": True}},
    "v2_ready": {"application/json": {"ready": True}},
    "predict_batch": {"application/x-ndjson": _NDJSON, "text/csv": "file,label,probability\nboot/1.png,boot,0.98\n"},
}
