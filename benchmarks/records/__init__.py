"""`spanbert-kernels bench` and `report`: run the suites, keep their record, compare records, make a page of them."""
