-- The databases beside the first one, `bars`, which POSTGRES_DB names. Run once, when the volume is new.
CREATE DATABASE features;
CREATE DATABASE ledger;
CREATE DATABASE mlflow;
