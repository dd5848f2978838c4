"""The programs behind hack/control-plane, hack/cluster, hack/cluster-images, hack/kubernetes and hack/image.

They run before ``.venv`` exists, so they and what they share with the tests (``tests.support.topology``) import nothing
but the standard library of Python 3.11.
"""
