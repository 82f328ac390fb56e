"""The policies of the live system in virtual time, over models of hardware, network, devices and workload."""
