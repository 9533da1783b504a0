"""The mathematics of Ember on arrays. This room knows no trees and no names, and does not check what users pass."""
