// Where the rows of the four roles lie: interdigitated (section 2 of the algorithm) or role after role.
//
// Legend: B labeled images, mu unlabeled images beside each, K classes. A group is what belongs to
// labeled image i: 2(1 + mu) rows, numbered inside the group
//   0 labeled weak | 1..mu unlabeled weak | 1+mu labeled strong | 2+mu..1+2mu unlabeled strong.
#pragma once

#include "hd.h"

namespace interlude {

// Rows of the four roles as they lie in memory. A group's rows of one role are `group_stride`
// elements after the previous group's; the mu unlabeled rows of a group lie one after another.
template <typename P>
struct Roles {
  P labeled_weak, unlabeled_weak, labeled_strong, unlabeled_strong;
  int64_t labeled_group_stride, unlabeled_group_stride;

  IF_HD P row(int64_t group, int row_in_group, int mu, int64_t classes) const {
    const bool strong = row_in_group > mu;
    const int r = strong ? row_in_group - mu - 1 : row_in_group;
    if (r == 0) return (strong ? labeled_strong : labeled_weak) + group * labeled_group_stride;
    return (strong ? unlabeled_strong : unlabeled_weak) + group * unlabeled_group_stride + (r - 1) * classes;
  }
};

// Where the four roles lie in one [2B(1+mu), K] tensor.
template <typename P>
IF_HD Roles<P> interdigitated_rows(P base, int64_t mu, int64_t classes) {
  const int64_t group = 2 * (1 + mu) * classes;
  return {base, base + classes, base + (1 + mu) * classes, base + (2 + mu) * classes, group, group};
}

template <typename P>
IF_HD Roles<P> separate_rows(P base, int64_t batch, int64_t mu, int64_t classes) {
  return {base,        base + 2 * batch * classes, base + batch * classes, base + batch * (2 + mu) * classes, classes,
          mu * classes};
}

}  // namespace interlude
