-- POSTGRES_DB has made MLflow's
CREATE DATABASE prefect;
