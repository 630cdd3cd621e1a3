"""Policy documents: kept under the KeyValue protocol, followed by every process, laid over the policies of the code."""
