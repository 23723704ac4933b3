# SPARK_CONF_DIR/spark-env.sh of masters, workers and applications.
# This address is the node's own; all else is the same everywhere.
SPARK_LOCAL_IP=10.0.0.11

SPARK_PUBLIC_DNS=$SPARK_LOCAL_IP            # without both, the UI listens on every address
SPARK_MASTER_HOST=$SPARK_LOCAL_IP
SPARK_MASTER_PORT=7077
SPARK_MASTER_WEBUI_PORT=8080
SPARK_WORKER_PORT=7078
SPARK_WORKER_WEBUI_PORT=8081
SPARK_WORKER_CORES=2
SPARK_WORKER_MEMORY=2g
SPARK_WORKER_DIR=/var/lib/spark/work
SPARK_DAEMON_MEMORY=512m
