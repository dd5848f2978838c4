"""The controller: rolls the nodes' BandwidthUsages up into each SliceBandwidth's status. One per cluster."""
