"""The contract between the service and the worker: settings, specs, tables, the queue, the records."""
